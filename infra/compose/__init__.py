"""Penstock in containers: the compose file, its images, and what runs inside them beside the roles."""
