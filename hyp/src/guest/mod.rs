//! Guests: configuration, address map, vCPUs, life cycle.
