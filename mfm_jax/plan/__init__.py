"""What training and generation need on devices that are not there."""
