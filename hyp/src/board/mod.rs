//! What the host's device tree says: controllers, CPUs, GIC, UART, boot modules.
