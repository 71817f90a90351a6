"""This machine: under which address others reach it, who holds a folder, what its workers hold in shared memory."""
