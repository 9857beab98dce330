"""Read and write sound and video, and prepare the frames and spectrograms that networks read."""
