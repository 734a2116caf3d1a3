"""Tables and progress of the commands. Receives results and prints them; makes no request."""
