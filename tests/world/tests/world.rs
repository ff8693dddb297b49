//! What the world itself must do: repeat, survive what is conforming, and find what is not.

use polypath_sim::seeds;
use polypath_world::{
    Action, Cut, GuestPlan, IscsiPath, IscsiSettings, Mix, Op, PathPlan, Plan, Rule, Settings, Timed, Transport,
    Transports, Violation, run, shrink,
};

/// Two fast paths, one disk, one reactor, one guest that writes all the time.
fn calm(seed: u64) -> Plan {
    let path = PathPlan {
        admin: 0,
        delay_us: (20, 60),
        skew_us: 0,
        digests: false,
        transport: Transport::NvmeTcp,
        iscsi: IscsiPath::default(),
    };
    let guest = GuestPlan { disk: 0, reactor: 0, depth: 8, most_blocks: 4, pause_us: 1500, reads: 30 };
    let settings = Settings {
        keep_alive_ms: 200,
        cqt_ms: 50,
        silence_ms: 60,
        io_timeout_ms: 150,
        tbkas: false,
        mdts_bytes: 8192,
        in_capsule: 4096,
        r2t_bytes: 0,
        queues: 4,
        depth: 16,
        buffer: 16_384,
        volatile: true,
        fencing: true,
        unnamed: false,
        slow_turns_ms: 0,
        iscsi: IscsiSettings::default(),
    };
    Plan {
        seed,
        length_ms: 400,
        reactors: 1,
        disks: 1,
        blocks: 64,
        paths: vec![path.clone(), path],
        guests: vec![guest],
        settings,
        actions: Vec::new(),
    }
}

fn at(at_ms: u64, action: Action) -> Timed {
    Timed { at_us: at_ms * 1000, action }
}

fn broken(plan: &Plan) -> Option<Violation> {
    run(plan, &Transports, 0).result.err()
}

/// Writes of path 0 are held back, and the path is reset while they are.
fn late_writes(seed: u64, after_ms: u64, beyond: bool) -> Plan {
    let hold = Action::Hold { path: 0, after_ms, beyond, answer: false, count: 6, ms: 50 };
    let length_ms = 1500;
    let actions = vec![at(50, hold), at(80, Action::Reset { path: 0 })];
    Plan { length_ms, actions, ..calm(seed) }
}

#[test]
fn the_same_seed_gives_the_same_run_byte_for_byte() {
    for seed in seeds(0, 6) {
        let plan = Plan::from_seed(seed, None);
        let (first, second) = (run(&plan, &Transports, 1), run(&plan, &Transports, 1));
        assert_eq!((first.hash, first.result), (second.hash, second.result), "seed {seed}");
        assert_ne!(first.hash, run(&Plan::from_seed(seed + 1, None), &Transports, 1).hash, "seed {seed}");
    }
}

#[test]
fn a_plan_is_the_same_after_it_was_printed() {
    for seed in seeds(0, 200) {
        let plan = Plan::from_seed(seed, None);
        let text = serde_json::to_string(&plan).expect("a plan can be written");
        assert_eq!(serde_json::from_str::<Plan>(&text).expect("and read"), plan, "seed {seed}");
    }
}

#[test]
fn a_quiet_world_gets_a_lot_done() {
    let report = run(&calm(1), &Transports, 0).result.expect("nothing goes wrong");
    assert!(report.completed > 500, "{report:?}");
    assert!(report.turns < 20 * report.completed, "reactors sleep while nothing happens: {report:?}");
}

#[test]
fn late_writes_within_the_promised_bound_harm_nobody_behind_a_fence() {
    for seed in seeds(0, 10) {
        // Twice 200 ms and 50 ms are promised.
        assert_eq!(broken(&late_writes(seed, 420, false)), None, "seed {seed}");
    }
}

#[test]
fn a_target_that_lies_about_its_bound_is_caught() {
    let caught = seeds(0, 10).into_iter().filter_map(|seed| broken(&late_writes(seed, 800, true)));
    let rules: Vec<Rule> = caught.map(|violation| violation.rule).collect();
    assert!(rules.len() >= 5, "a late write lands on a newer one nearly always: {rules:?}");
    assert!(rules.iter().all(|rule| matches!(rule, Rule::Data | Rule::Durable)), "{rules:?}");
}

/// The same over iSCSI: the paths have these portal groups, and the sessions of path 0 try the portal of path 1 when theirs is closed.
fn late_tasks(seed: u64, groups: [u16; 2], beyond: bool) -> Plan {
    let mut plan = late_writes(seed, 800, beyond);
    for (path, group) in plan.paths.iter_mut().zip(groups) {
        path.transport = Transport::Iscsi;
        path.iscsi.portal_group = group;
    }
    plan.paths[0].iscsi.alternates = vec![1];
    // While its own portal is closed, it logs in through the other.
    plan.actions.push(at(80, Action::Close { path: 0, ms: 300 }));
    plan
}

#[test]
fn late_tasks_harm_nobody_behind_a_reinstatement_or_a_bound() {
    for seed in seeds(0, 6) {
        for groups in [[1, 1], [1, 2]] {
            assert_eq!(broken(&late_tasks(seed, groups, false)), None, "seed {seed}, {groups:?}");
        }
    }
}

/// What the target had taken is proven quiet by the reset, the rest by the bound.
#[test]
fn late_tasks_harm_nobody_behind_a_reset_through_another_path() {
    for seed in seeds(0, 6) {
        let mut plan = late_tasks(seed, [1, 2], false);
        plan.settings.iscsi.reset_fence_ms = Some(10);
        assert_eq!(broken(&plan), None, "seed {seed}");
    }
}

#[test]
fn a_target_that_does_not_end_the_tasks_of_a_session_is_caught() {
    let caught = seeds(0, 6).into_iter().filter_map(|seed| broken(&late_tasks(seed, [1, 1], true)));
    let rules: Vec<Rule> = caught.map(|violation| violation.rule).collect();
    assert!(rules.len() >= 3, "it has taken the login: {rules:?}");
    assert!(rules.iter().all(|rule| matches!(rule, Rule::Data | Rule::Durable)), "{rules:?}");
}

#[test]
fn each_family_has_the_faults_of_the_others() {
    for seed in seeds(0, 60) {
        let [nvme, iscsi, mixed] = Mix::ALL.map(|mix| Plan::from_seed(seed, Some(mix)));
        assert_eq!([&nvme, &iscsi, &mixed].map(Mix::of), Mix::ALL, "seed {seed}");
        assert!(nvme.actions == iscsi.actions && iscsi.actions == mixed.actions, "seed {seed}");
        assert_eq!(Mix::of(&Plan::from_seed(seed, None)), Mix::of_seed(seed), "seed {seed}");
    }
}

#[test]
fn without_fences_a_conforming_target_brings_old_data() {
    let unfenced = |seed| {
        let mut plan = late_writes(seed, 420, false);
        plan.settings.fencing = false;
        plan
    };
    let caught = seeds(0, 10).into_iter().filter_map(|seed| broken(&unfenced(seed)));
    let rules: Vec<Rule> = caught.map(|violation| violation.rule).collect();
    assert!(rules.len() >= 5, "{rules:?}");
    assert!(rules.iter().all(|rule| matches!(rule, Rule::Data | Rule::Durable)), "{rules:?}");
}

#[test]
fn an_error_that_reaches_a_guest_is_reported() {
    // The group waits a minute for a path; this one is away for longer.
    let mut plan = calm(3);
    plan.paths.truncate(1);
    plan.length_ms = 65_000;
    plan.actions = vec![at(50, Action::Cut { path: 0, way: Cut::Both, ms: 64_000 })];
    let violation = broken(&plan).expect("no path for longer than the group waits");
    assert_eq!(violation.rule, Rule::NoError, "{violation}");
}

#[test]
fn a_failing_plan_is_cut_down_to_what_fails() {
    let (noise, seed) = (|ms| at(ms, Action::Stall { reactor: 0, ms: 3 }), 2);
    let mut plan = late_writes(seed, 800, true);
    plan.guests.push(GuestPlan { pause_us: 9000, ..plan.guests[0].clone() });
    plan.actions.extend([10, 20, 600, 700].map(noise));
    plan.actions.push(at(300, Action::Delay { path: 1, op: Op::Read, us: 500, count: 3, ms: 20 }));
    plan.actions.sort_by_key(|timed| timed.at_us);
    let violation = broken(&plan).expect("the target lies");
    let shrunk = shrink(&plan, violation.clone(), &Transports, 60);
    assert!(shrunk.runs <= 60);
    assert_eq!(shrunk.violation.rule, violation.rule);
    assert!(shrunk.plan.actions.len() <= 2 && shrunk.plan.guests.len() == 1, "{:?}", shrunk.plan);
    assert!(shrunk.plan.actions.iter().any(|t| matches!(t.action, Action::Hold { .. })), "{:?}", shrunk.plan);
    assert_eq!(broken(&shrunk.plan), Some(shrunk.violation), "what is printed fails as it is told");
}
