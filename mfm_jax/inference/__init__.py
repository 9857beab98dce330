"""From video to sound with a bundle."""
