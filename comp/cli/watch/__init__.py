"""`comp watch`: pages of trainings as they go, and the server that shows them to this machine alone."""
