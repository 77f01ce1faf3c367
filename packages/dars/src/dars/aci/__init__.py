"""The agent-computer interface."""
