"""Where the rooms are put together: entry points, the loop, placement and the Ray runtime."""
