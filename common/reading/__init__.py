"""Reading data sets of others: rows of any container in bounded memory, images below their root."""
