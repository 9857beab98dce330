"""What a run needs whatever it computes: config fields, devices, processes, progress."""
