"""Watch: what trained agents do: scores of fresh episodes, the world model run forward, and films of both."""
