//! `cpus`, `controllers`, `version`: the host, and Ballast on it.

use super::prelude::*;
use crate::mitigation::Branches;
use crate::monitor::machine::ControllerState;

/// Lists the CPUs.
pub(super) fn cpus(session: &mut Session<'_>, _: &Arguments<'_>) -> Done {
    let machine = session.machine;
    let cpus = (0..machine.cpu_count()).filter_map(|at| Some((at, machine.cpu(at)?)));
    session.list("cpus", "cpus", "There are no CPUs.", cpus, |table, (at, cpu)| {
        let branches = cpu.mitigation.map(|choice| choice.branches);
        let loops = branches.and_then(Branches::loop_count);
        table.row(&[
            ("cpu=CPU", Count(at as u64)),
            ("mpidr=MPIDR", Address(cpu.mpidr)),
            ("model=MODEL", Text(cpu.model)),
            ("state=STATE", Text(if cpu.is_online { "online" } else { "failed" })),
            ("guest=GUEST", cpu.vcpu.map_or(Nothing, |(guest, _)| Text(guest))),
            ("vcpu=vCPU", cpu.vcpu.map_or(Nothing, |(_, vcpu)| Count(vcpu as u64))),
            ("vcpu_is_on=vCPU ON", cpu.vcpu.map_or(Nothing, |_| Flag(cpu.is_vcpu_on))),
            ("branch_mitigation", branches.map_or(Nothing, |branches| Text(branches.name()))),
            ("branch_loop_count", loops.map_or(Nothing, |count| Count(count.into()))),
            ("=BRANCHES", branches.as_ref().map_or(Nothing, |branches| Show(branches))),
            (
                "store_bypass_mitigation=STORE BYPASS",
                cpu.mitigation.map_or(Nothing, |choice| Text(choice.stores_name())),
            ),
        ])
    })
}

/// Lists the controllers.
pub(super) fn controllers(session: &mut Session<'_>, _: &Arguments<'_>) -> Done {
    let machine = session.machine;
    session.list(
        "controllers",
        "controllers",
        "There are no controllers.",
        machine.controllers(),
        |table, (_, controller)| {
            let state = controller.state();
            let ranges = from_fn(|f| {
                for (at, (base, size)) in controller.ranges.iter().enumerate() {
                    write!(f, "{}{}@{base:#x}", if at == 0 { "" } else { "," }, Compact(*size))?;
                }
                match state {
                    ControllerState::Open => Ok(()),
                    ControllerState::Closed => {
                        write!(f, " (closed, {} in use)", Size(controller.used_bytes))
                    }
                    ControllerState::Evacuated => write!(f, " (evacuated)"),
                }
            });
            table.row(&[
                ("name=NAME", Text(controller.name)),
                ("state", Text(state.name())),
                ("total_bytes=SIZE", Bytes(controller.total_bytes)),
                ("free_bytes=FREE", Bytes(controller.free_bytes)),
                ("guest_bytes=GUESTS", Bytes(controller.guest_bytes)),
                ("own_bytes=BALLAST", Bytes(controller.own_bytes)),
                ("reserved_bytes=RESERVED", Bytes(controller.reserved_bytes)),
                ("dmb_bytes=IN DMBs", Bytes(controller.dmb_bytes)),
                ("used_bytes", Bytes(controller.used_bytes)),
                ("ranges", Ranges(&controller.ranges)),
                ("=RANGES", Show(&ranges)),
            ])
        },
    )
}

/// Shows the running version.
pub(super) fn version(session: &mut Session<'_>, _: &Arguments<'_>) -> Done {
    let uptime_ns = session.io().now_ns();
    session.report("version", |report, machine| {
        let version = machine.version();
        let [image, own, table] = [version.image_bytes, version.own_bytes, version.frame_table_bytes];
        report.fields(&[
            ("version=Ballast", Text(version.version)),
            ("commit=Commit", Text(version.commit)),
            ("compiler=Compiler", Text(version.compiler)),
            ("host=Host", Text(version.host)),
            ("psci=PSCI", Show(&format_args!("{}.{}", version.psci.0, version.psci.1))),
            ("uptime_ns=Up for", Nanoseconds(uptime_ns)),
            (
                "=Memory",
                Show(&format_args!("image {}, own {}, frame table {}", Size(image), Size(own), Size(table))),
            ),
            ("image_bytes", Bytes(image)),
            ("own_bytes", Bytes(own)),
            ("frame_table_bytes", Bytes(table)),
        ])
    })
}
