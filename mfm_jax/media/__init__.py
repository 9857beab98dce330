"""Sound and pictures: files, the frames and spectrograms that networks read, and writing."""
