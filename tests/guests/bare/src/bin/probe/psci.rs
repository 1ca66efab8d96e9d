//! PSCI 1.1 (Arm DEN 0022) and SMCCC (Arm DEN 0028): the results of every call, including documented errors.

use crate::report::{check, equal, skip};
use bare::exception::{Caught, catch, class};
use bare::platform::{Conduit, Host, Platform};
use bare::psci::result::{ALREADY_ON, INVALID_ADDRESS, INVALID_PARAMETERS, NOT_SUPPORTED, SUCCESS};
use bare::psci::{self, Registers, call, signed};
use bare::{cache, gic, smp, timer};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The state of a CPU at its first instructions: x0, CurrentEL, SCTLR_EL1, DAIF, SPSel, and a mark at the end.
#[repr(C, align(256))]
struct Witness([AtomicU64; 6]);

static WITNESS: Witness = Witness([const { AtomicU64::new(0) }; 6]);
static MAY_END: AtomicBool = AtomicBool::new(false);
const MARK: u64 = 0xb411_a57b_0a7d;
const CONTEXT: u64 = 0x0123_4567_89ab_cdef;

core::arch::global_asm!(
    r#"
/* Where a CPU is started to be looked at: no stack, no MMU, x0 alone. */
.global probe_witness
probe_witness:
    adrp    x1, {witness}
    add     x1, x1, :lo12:{witness}
    mrs     x2, CurrentEL
    mrs     x3, sctlr_el1
    mrs     x4, daif
    mrs     x5, spsel
    stp     x0, x2, [x1]
    stp     x3, x4, [x1, #16]
    mov     x6, #0x0a7d
    movk    x6, #0xa57b, lsl #16
    movk    x6, #0xb411, lsl #32
    stp     x5, x6, [x1, #32]
    dsb     sy
    mov     w0, #0x84000000
    add     w0, w0, #2
    hvc     #0
1:  wfi
    b       1b
"#,
    witness = sym WITNESS,
);

unsafe extern "C" {
    fn probe_witness();
}

/// Calls the unknown `function`. Returns x0.
macro_rules! immediate {
    ($instruction:literal, $function:expr) => {{
        let result: u64;
        // SAFETY: the call changes only the registers that SMCCC allows.
        unsafe { core::arch::asm!($instruction, inout("x0") $function => result, clobber_abi("C")) };
        result
    }};
}

pub(crate) fn run(platform: &'static Platform) {
    let version = call(psci::VERSION, 0, 0, 0);
    check!("psci_version", (0x1_0000..0x2_0000).contains(&version), "{:#x}", version);
    features();
    not_supported(platform);
    conduits(platform);
    preserved_registers(platform);
    smccc(platform);
    simple_calls(platform);
    cpu_errors(platform);
    suspend(platform);
    second_cpu(platform);
}

fn features() {
    let mandatory = [
        ("version", psci::VERSION),
        ("cpu_suspend", 0x8400_0001),
        ("cpu_suspend_64", psci::CPU_SUSPEND),
        ("cpu_off", psci::CPU_OFF),
        ("cpu_on", 0x8400_0003),
        ("cpu_on_64", psci::CPU_ON),
        ("affinity_info", 0x8400_0004),
        ("affinity_info_64", psci::AFFINITY_INFO),
        ("migrate_info_type", psci::MIGRATE_INFO_TYPE),
        ("system_off", psci::SYSTEM_OFF),
        ("system_reset", psci::SYSTEM_RESET),
        ("features", psci::FEATURES),
    ];
    for (name, function) in mandatory {
        let got = call(psci::FEATURES, function, 0, 0);
        check!("psci_features_of_mandatory", got >= 0, "{} ({:#x}): {}", name, function, got);
    }
    for function in [0x8400_001f, 0xc400_001f, 0x1234, 0, u64::from(u32::MAX), psci::MIGRATE] {
        equal!("psci_features_of_unknown", call(psci::FEATURES, function, 0, 0), NOT_SUPPORTED);
    }
    // Calls that FEATURES does not report are not supported.
    for number in 0..0x20 {
        for function in [0x8400_0000 | number, 0xc400_0000 | number] {
            if call(psci::FEATURES, function, 0, 0) == NOT_SUPPORTED {
                let got = catch(|| call(function, 0, 0, 0));
                let holds = got == Ok(NOT_SUPPORTED) || got.is_err_and(is_undefined_on_bare);
                if !holds {
                    check!("psci_features_agree", false, "{:#x}: {:x?}", function, got);
                    return;
                }
            }
        }
    }
    check!("psci_features_agree", true, "");
}

/// HVC is undefined on QEMU's board without EL2.
fn is_undefined_on_bare(caught: Caught) -> bool {
    bare::boot::platform().is_some_and(|platform| platform.host == Host::Bare)
        && caught.class() == class::UNKNOWN
}

fn not_supported(_platform: &Platform) {
    // Every owning entity, fast and yielding, both conventions, and reserved values.
    for service in 0..64u64 {
        for kind in [0u64, 0x4000_0000, 0x8000_0000, 0xc000_0000] {
            let function = kind | service << 24 | 0x7e51;
            let mut registers: Registers = [0; 18];
            registers[0] = function;
            let got = catch(|| signed(function | 1 << 30, psci::hvc(&registers)[0]) as i32);
            let holds = got == Ok(-1) || got.is_err_and(is_undefined_on_bare);
            if !holds {
                check!("hvc_unknown_not_supported", false, "{:#x}: {:x?}", function, got);
                return;
            }
        }
    }
    check!("hvc_unknown_not_supported", true, "");
}

fn conduits(platform: &Platform) {
    let mut registers: Registers = [0; 18];
    registers[0] = psci::VERSION;
    let by_hvc = catch(|| psci::hvc(&registers)[0] as u32);
    let by_smc = catch(|| psci::smc(&registers)[0] as u32);
    if platform.host == Host::Hypervisor {
        check!("psci_by_both_conduits", by_hvc.is_ok() && by_hvc == by_smc, "{:x?} {:x?}", by_hvc, by_smc);
        registers[0] = 0x8400_7e51;
        equal!("smc_unknown_not_supported", catch(|| psci::smc(&registers)[0] as i32), Ok(-1));
        registers[0] = 0xdead_beef << 32 | psci::VERSION;
        equal!("smccc_function_is_32_bits", catch(|| psci::hvc(&registers)[0] as u32), by_hvc);
    } else {
        skip("psci_by_both_conduits", "only under Ballast");
    }
    // A call with another immediate is an error or undefined.
    for (name, got) in [
        ("hvc_with_immediate", catch(|| immediate!("hvc #0x1234", psci::VERSION))),
        ("hvc_1_with_psci_version", catch(|| immediate!("hvc #1", psci::VERSION))),
        ("hvc_1_with_smccc_version", catch(|| immediate!("hvc #1", psci::SMCCC_VERSION))),
        ("smc_with_immediate", catch(|| immediate!("smc #0x1234", psci::VERSION))),
    ] {
        let refused = match got {
            Ok(result) => platform.host != Host::Hypervisor || result == u64::MAX,
            Err(caught) => caught.class() == class::UNKNOWN,
        };
        check!(name, refused, "{:x?}", got);
    }
}

/// Checks that a call changes only x0 to x3, as from SMCCC 1.1.
fn preserved_registers(platform: &Platform) {
    let registers: Registers =
        core::array::from_fn(
            |index| {
                if index == 0 { psci::VERSION } else { bare::random::mix(index as u64) }
            },
        );
    let got = if platform.conduit == Conduit::Hvc { psci::hvc(&registers) } else { psci::smc(&registers) };
    check!("smccc_x4_to_x17_kept", got[4..] == registers[4..], "{:x?} became {:x?}", registers, got);
}

fn smccc(platform: &Platform) {
    if call(psci::FEATURES, psci::SMCCC_VERSION, 0, 0) < 0 {
        if platform.host == Host::Hypervisor {
            check!("smccc_version", false, "PSCI_FEATURES denies it");
        } else {
            skip("smccc_version", "not here");
        }
        return;
    }
    let version = call(psci::SMCCC_VERSION, 0, 0, 0);
    check!("smccc_version", (0x1_0001..0x2_0000).contains(&version), "{:#x}", version);
    equal!("smccc_features_version", call(psci::SMCCC_ARCH_FEATURES, psci::SMCCC_VERSION, 0, 0), SUCCESS);
    equal!("smccc_features_unknown", call(psci::SMCCC_ARCH_FEATURES, 0x8000_7e51, 0, 0), NOT_SUPPORTED);
}

fn simple_calls(platform: &Platform) {
    equal!("psci_migrate_info_type", call(psci::MIGRATE_INFO_TYPE, 0, 0, 0), 2);
    let migrate = catch(|| call(psci::MIGRATE, 0, 0, 0));
    check!(
        "psci_migrate",
        migrate == Ok(NOT_SUPPORTED) || migrate.is_err_and(is_undefined_on_bare),
        "{:x?}",
        migrate
    );
    if platform.host == Host::Hypervisor {
        check!(
            "psci_has_reset2",
            call(psci::FEATURES, psci::SYSTEM_RESET2, 0, 0) >= 0,
            "PSCI_FEATURES denies it"
        );
        equal!("psci_reset2_of_unknown_type", call(psci::SYSTEM_RESET2, 5, 0, 0), INVALID_PARAMETERS);
    }
}

fn cpu_errors(platform: &Platform) {
    let own = platform.cpus()[0];
    let entry = smp::entry();
    equal!("psci_affinity_of_self", call(psci::AFFINITY_INFO, own, 0, 0), 0);
    equal!("psci_affinity_of_self_32", call(0x8400_0004, own, 0, 0), 0);
    equal!("psci_affinity_of_nobody", call(psci::AFFINITY_INFO, 0xfefe, 0, 0), INVALID_PARAMETERS);
    equal!("psci_cpu_on_self", psci::cpu_on(own, entry, 0), ALREADY_ON);
    for affinity in [0xfefe, 0xfe00_0000_0000, 0x1_0000_0000_0000, u64::MAX] {
        equal!("psci_cpu_on_nobody", psci::cpu_on(affinity, entry, 0), INVALID_PARAMETERS);
    }
    if platform.host == Host::Hypervisor {
        equal!("psci_affinity_level_unknown", call(psci::AFFINITY_INFO, own, 4, 0), INVALID_PARAMETERS);
    }
    let Some(&other) = platform.cpus().get(1) else {
        return;
    };
    equal!("psci_affinity_of_other", call(psci::AFFINITY_INFO, other, 0, 0), 1);
    let misaligned = psci::cpu_on(other, entry + 2, 0);
    check!(
        "psci_cpu_on_misaligned",
        matches!(misaligned, INVALID_ADDRESS | INVALID_PARAMETERS),
        "entry {:#x}: {}",
        entry + 2,
        misaligned
    );
    if platform.host == Host::Hypervisor {
        for entry in
            [0, gic::distributor(), 0x0900_0000, platform.ram()[platform.ram_count - 1].end, 0x8000_0000_0000]
        {
            equal!("psci_cpu_on_address", psci::cpu_on(other, entry, 0), INVALID_ADDRESS);
        }
    }
    equal!("psci_other_still_off", call(psci::AFFINITY_INFO, other, 0, 0), 1);
}

fn suspend(platform: &Platform) {
    if platform.entry_level == 2 {
        skip("psci_cpu_suspend", "entered at EL2");
        return;
    }
    equal!("psci_suspend_reserved_bits", call(psci::CPU_SUSPEND, 0xfffe_0000, 0, 0), INVALID_PARAMETERS);
    gic::enable(timer::VIRTUAL_INTID);
    let start = timer::now();
    timer::arm_virtual(start + timer::ticks(2000));
    // The interrupt is masked, but still wakes the CPU.
    let result = call(psci::CPU_SUSPEND, 0, smp::entry() as u64, 0);
    let slept = timer::now() - start;
    equal!("psci_suspend_standby", result, SUCCESS);
    check!("psci_suspend_slept", slept >= timer::ticks(2000), "{} ticks", slept);
    timer::stop_virtual();
    power_down(platform);
    gic::disable(timer::VIRTUAL_INTID);
}

fn power_down(platform: &Platform) {
    if platform.conduit != Conduit::Hvc {
        return;
    }
    timer::arm_virtual(timer::now() + timer::ticks(2000));
    // Without a valid entry point, the call can only return a result; a shallower state is allowed.
    let result = call(psci::CPU_SUSPEND, 1 << 16, 0, CONTEXT);
    timer::stop_virtual();
    check!(
        "psci_suspend_power_down_to_nowhere",
        matches!(result, SUCCESS | INVALID_ADDRESS | INVALID_PARAMETERS),
        "{}",
        result
    );
}

fn second_cpu(platform: &Platform) {
    let Some(&other) = platform.cpus().get(1) else {
        skip("psci_cpu_on", "one CPU");
        return;
    };
    if platform.entry_level == 1 {
        witness(platform, other);
    }
    for function in [psci::CPU_ON, 0x8400_0003] {
        MAY_END.store(false, Ordering::Release);
        let context = smp::context(1, |_| {
            while !MAY_END.load(Ordering::Acquire) {
                bare::sync::relax();
            }
        });
        equal!("psci_cpu_on", call(function, other, smp::entry() as u64, context), SUCCESS);
        timer::wait_for(1_000_000, || smp::is_running(1));
        equal!("psci_affinity_of_running", psci::affinity_info(other), 0);
        equal!("psci_cpu_on_running", psci::cpu_on(other, smp::entry(), 0), ALREADY_ON);
        MAY_END.store(true, Ordering::Release);
        check!("psci_cpu_off", timer::wait_for(1_000_000, || psci::affinity_info(other) == 1), "still on");
    }
    static RAN: AtomicU64 = AtomicU64::new(0);
    let mut rounds = 0;
    while rounds < 50 {
        let context = smp::context(1, |_| {
            RAN.fetch_add(1, Ordering::Release);
        });
        // Between CPU_ON and its first instruction, a CPU may still be reported as off.
        if psci::cpu_on(other, smp::entry(), context) != SUCCESS
            || !timer::wait_for(1_000_000, || RAN.load(Ordering::Acquire) > rounds)
            || !timer::wait_for(1_000_000, || psci::affinity_info(other) == 1)
        {
            break;
        }
        rounds += 1;
    }
    equal!("psci_cpu_on_and_off_50_times", rounds, 50);
}

/// Checks the initial state of a CPU ("Initial core configuration").
fn witness(platform: &Platform, other: u64) {
    if platform.conduit != Conduit::Hvc {
        return;
    }
    let place = core::ptr::from_ref(&WITNESS) as usize;
    cache::clean_invalidate(place, size_of::<Witness>());
    equal!("psci_cpu_on_witness", psci::cpu_on(other, probe_witness as *const () as usize, CONTEXT), SUCCESS);
    let told = timer::wait_for(1_000_000, || {
        cache::clean_invalidate(place, size_of::<Witness>());
        WITNESS.0[5].load(Ordering::Acquire) == MARK
    });
    check!("psci_cpu_started", told, "no sign of it");
    let [x0, level, sctlr, daif, spsel, _] =
        core::array::from_fn(|index| WITNESS.0[index].load(Ordering::Acquire));
    equal!("psci_start_context", x0, CONTEXT);
    equal!("psci_start_el1", level, 1 << 2);
    equal!("psci_start_mmu_and_caches_off", sctlr & (1 | 1 << 2 | 1 << 12 | 1 << 25), 0);
    equal!("psci_start_interrupts_masked", daif, 0x3c0);
    equal!("psci_start_own_stack_pointer", spsel, 1);
    check!("psci_witness_off", timer::wait_for(1_000_000, || psci::affinity_info(other) == 1), "still on");
}
