"""What lies on disks: files written whole, folders of arrays, weights by name, checkpoints."""
