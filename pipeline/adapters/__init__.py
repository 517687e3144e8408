"""Students in the interfaces of other evaluation kits: HEAR and X-ARES."""
