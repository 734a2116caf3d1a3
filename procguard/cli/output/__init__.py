"""Tables and progress of the commands. Receives results and prints them; sends no requests."""
