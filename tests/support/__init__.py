"""What tests share: the real product, real agents, fences against leaks, and waiting for conditions."""
