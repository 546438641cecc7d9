"""What people and machines read: the run folder, tables, progress."""
