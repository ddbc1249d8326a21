"""PostgreSQL: everything durable, behind one thread. The only place where asyncio appears."""
