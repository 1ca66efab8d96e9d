//! The serial console: multiplexer, shell, commands, reports.
