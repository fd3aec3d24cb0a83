"""Speed and quality, measured side by side, each with one command."""
