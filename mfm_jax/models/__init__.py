"""The networks: one file each, named after the network, its sizes in a frozen config."""
