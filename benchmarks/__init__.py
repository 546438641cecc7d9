"""One file per question; each prints one JSON object a line."""
