"""Workers that die or hang are replaced while the run goes on.

Supervisor   watches all seats, and puts another worker in the place of one that is lost
Seat         the place of one worker: a Handle whose calls go to whoever sits there now
heartbeat    asks one worker for its pulse, until something is wrong with it
Restarts     the budget of restarts, and the pause before each
roster       RUN/workers.json: who runs where, under which process ids
"""
