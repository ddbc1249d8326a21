"""Actors: trio tasks with a name, bounded inboxes and state of their own, under one supervisor."""
