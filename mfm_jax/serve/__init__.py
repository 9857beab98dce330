"""`mfm serve`: a page and a REST API that make sound for the videos of several visitors."""
