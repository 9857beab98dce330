"""One recipe for each network: its data, its loss, its score and what it leaves in a bundle."""
