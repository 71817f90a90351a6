"""Who sits where on a cluster: what is asked for, which node it goes to, and how it is held."""
