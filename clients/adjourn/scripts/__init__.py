"""What goes along with a script that is submitted: what it imports from its own folder, and what is asked for."""
