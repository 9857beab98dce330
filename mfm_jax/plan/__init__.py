"""What a program will need on devices that are not there: its arithmetic, memory and exchange."""
