//! The commands.

mod console;
mod guest;
mod guests;
mod help;
mod host;
mod log;
mod memory;
mod stats;
mod top;
mod trace;
mod watch;

use super::grammar::{Command, Kind, optional, required};
use super::mux::RING_SIZE;

pub(super) use self::help::{explain, unknown};

/// All commands, in the order in which `help` lists them.
pub const COMMANDS: &[Command] = &[
    Command {
        name: "help",
        parameters: &[optional("COMMAND", Kind::Command)],
        summary: "list the commands, or explain one",
        details: "Tab completes commands and arguments, the arrow keys bring back earlier lines, Ctrl-C ends \
                  what is running. Every command takes --json (one object on one line), --exact (no \
                  rounded sizes) and --help. Ctrl-] ? lists the keys that switch consoles.",
        example: "help start",
        run: help::run,
    },
    Command {
        name: "guests",
        parameters: &[],
        summary: "list the guests: state, vCPUs, memory, and why one is stopped",
        details: "",
        example: "guests --json",
        run: guests::list,
    },
    Command {
        name: "guest",
        parameters: &[required("GUEST", Kind::Guest), optional("tree|map", Kind::Word(&["tree", "map"]))],
        summary: "show a guest, its device tree, or what backs its RAM",
        details: "tree prints the tree that the guest gets, as source. map lists its RAM, and behind which \
                  controllers it lies in units of which size; in JSON, too.",
        example: "guest alpha map",
        run: guest::run,
    },
    Command {
        name: "start",
        parameters: &[required("GUEST", Kind::Guest)],
        summary: "start a guest that is off",
        details: "",
        example: "start alpha",
        run: guests::start,
    },
    Command {
        name: "stop",
        parameters: &[required("GUEST", Kind::Guest)],
        summary: "stop a guest at once and free what it has",
        details: "The guest is not asked: type poweroff in it to end it in good order.",
        example: "stop alpha",
        run: guests::stop,
    },
    Command {
        name: "reset",
        parameters: &[required("GUEST", Kind::Guest)],
        summary: "start a guest afresh from its images, whatever it does",
        details: "",
        example: "reset alpha",
        run: guests::reset,
    },
    Command {
        name: "cpus",
        parameters: &[],
        summary: "list the CPUs and the vCPUs that they belong to",
        details: "",
        example: "cpus",
        run: host::cpus,
    },
    Command {
        name: "controllers",
        parameters: &[],
        summary: "list the memory controllers: ranges, and who has how much of them",
        details: "",
        example: "controllers --exact",
        run: host::controllers,
    },
    Command {
        name: "mem",
        parameters: &[],
        summary: "show how much RAM there is and what it is used for",
        details: "MovableOnly is what lies in zone MOVABLE, the designated movable blocks.",
        example: "mem --exact",
        run: memory::mem,
    },
    Command {
        name: "zones",
        parameters: &[],
        summary: "list the zones, as a whole and behind each controller",
        details: "NORMAL holds what Ballast cannot move, MOVABLE guests' RAM alone. Their spans may overlap; \
                  every frame is present in one.",
        example: "zones",
        run: memory::zones,
    },
    Command {
        name: "map",
        parameters: &[optional("CONTROLLER", Kind::Controller)],
        summary: "draw what lies where behind a controller, or all",
        details: "A character stands for 2 MiB, or for more behind large controllers.",
        example: "map mc0",
        run: memory::map,
    },
    Command {
        name: "frame",
        parameters: &[required("ADDRESS", Kind::Number(0, u64::MAX))],
        summary: "show everything known of the frame at a physical address",
        details: "",
        example: "frame 0x48000000",
        run: memory::frame,
    },
    Command {
        name: "console",
        parameters: &[
            optional("NAME|all|front", Kind::Either(&Kind::Console, &Kind::Word(&["all", "front"]))),
            optional("limit", Kind::Word(&["limit"])),
            optional("SIZE", Kind::Size),
        ],
        summary: "list the consoles, or bring one to front",
        details: "all shows every guest's lines behind its name, front only the console in front. limit sets \
                  how much is kept of what a guest prints while another is in front.",
        example: "console alpha",
        run: console::run,
    },
    Command {
        name: "stats",
        parameters: &[optional("GUEST|reset", Kind::Either(&Kind::Guest, &Kind::Word(&["reset"])))],
        summary: "show the guests' counters: exits, interrupts, time at EL2",
        details: "With a guest: its exits by reason. Text counts since the last reset; JSON counts since boot, \
                  always.",
        example: "stats alpha",
        run: stats::run,
    },
    Command {
        name: "top",
        parameters: &[optional("SECONDS", Kind::Number(1, 3600))],
        summary: "show controllers and guests on a screen that refreshes itself",
        details: "Any key ends it.",
        example: "top 5",
        run: top::run,
    },
    Command {
        name: "trace",
        parameters: &[
            optional(
                "GUEST|KIND|on|off",
                Kind::Either(
                    &Kind::Guest,
                    &Kind::Word(&["on", "off", "exit", "inject", "migrate", "claim", "life"]),
                ),
            ),
            optional("COUNT", Kind::Number(1, 4096)),
        ],
        summary: "show the last events, or turn their recording on or off",
        details: "Each CPU keeps its last 251 events: exits, injected interrupts, migrations, claims, and \
                  guests' lives. Nothing is recorded while they are shown.",
        example: "trace exit 20",
        run: trace::run,
    },
    Command {
        name: "log",
        parameters: &[optional("LEVEL", Kind::Level)],
        summary: "show the log, or its lines of at least a level",
        details: "The last 64 KiB are kept. The command line's log= sets what is logged: \
                  log=text,info,vgic=debug.",
        example: "log warn",
        run: log::run,
    },
    Command {
        name: "version",
        parameters: &[],
        summary: "show what is running, since when, and what it takes for itself",
        details: "",
        example: "version",
        run: host::version,
    },
    Command {
        name: "watch",
        parameters: &[required("SECONDS", Kind::Number(1, 3600)), required("COMMAND", Kind::Line)],
        summary: "repeat a command until a key is pressed",
        details: "",
        example: "watch 2 guests",
        run: watch::run,
    },
];

/// The command with this name.
pub fn find(name: &str) -> Option<&'static Command> {
    COMMANDS.iter().find(|command| command.name == name)
}

/// Whether the command with this name takes another command as its last argument.
pub fn takes_line(name: &str) -> bool {
    find(name).is_some_and(|command| {
        command.parameters.last().is_some_and(|parameter| matches!(parameter.kind, Kind::Line))
    })
}

/// Largest limit of a console.
const MOST_KEPT: u64 = RING_SIZE as u64;
