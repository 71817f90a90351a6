"""What `cluster.doctor` looks at: facts of a machine, taken here or on every node, and what each of them means."""
