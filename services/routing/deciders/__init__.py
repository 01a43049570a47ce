"""What follows from each command, by who speaks or by subject: the map is in `engine`, in its first lines."""
