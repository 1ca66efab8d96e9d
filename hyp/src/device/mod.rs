//! The platform that a guest sees: device models as plain state machines, which also run on a PC.

pub(crate) mod data_abort;
pub(crate) mod exception;
pub(crate) mod function_id;
pub(crate) mod identification;
pub(crate) mod instruction;
pub(crate) mod pool_call;
pub(crate) mod psci;
pub(crate) mod shared_uart;
pub(crate) mod smccc;
pub(crate) mod vgic;
pub(crate) mod vpl011;
pub(crate) mod wait;
