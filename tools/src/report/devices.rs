//! The report's section on assigned devices.

use std::fmt::{self, Write as _};

use super::Text;
use crate::model::Snapshot;

/// Writes the devices that are assigned to guests.
pub(super) fn write(page: &mut String, last: &Snapshot) -> fmt::Result {
    if last.devices.is_empty() {
        return Ok(());
    }
    page.push_str(
        "<h2>Devices</h2>\n<table><tr><th>Guest<th>Device<th>Host<th>Kind<th class=n>Interrupts<th class=n>Faults\
         <th>State\n",
    );
    for device in &last.devices {
        let class = match device.state.as_str() {
            "failed" => " class=failed",
            "attached" => " class=running",
            _ => "",
        };
        writeln!(
            page,
            "<tr><td>{}<td>{}<td>{}<td>{}<td class=n>{}<td class=n>{}<td{class}>{}",
            Text(&device.guest),
            Text(&device.device),
            Text(&device.host),
            Text(&device.kind),
            device.interrupt_count,
            device.fault_count,
            Text(&device.status())
        )?;
    }
    page.push_str("</table>\n");
    Ok(())
}
