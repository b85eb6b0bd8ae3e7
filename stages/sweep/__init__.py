"""Seeds and trials side by side: one program vmapped and sharded, in as many rounds as memory asks for."""
