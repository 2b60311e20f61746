//! The kernel's files as they were found on real machines, and what follows from them.

use std::collections::HashMap;

use super::*;

#[test]
fn auto_is_one_shard_per_cpu_and_no_more_than_the_quota_pays_for() {
    for (allowed, quota, expected) in [
        (vec![0, 1, 2, 3], None, vec![Some(0), Some(1), Some(2), Some(3)]),
        (vec![2, 5], None, vec![Some(2), Some(5)]),
        (vec![2, 5], Some(8.0), vec![Some(2), Some(5)]),
        (vec![0, 1, 2, 3], Some(2.9), vec![None, None]),
        (vec![0, 1, 2], Some(1.999_99), vec![None, None]),
        (vec![0, 1, 2, 3], Some(0.5), vec![None]),
        (vec![7], Some(0.5), vec![Some(7)]),
        (vec![7], Some(0.001), vec![Some(7)]),
    ] {
        let shards = cpus(&allowed, quota).shards_for(&Shards::Auto).unwrap();
        assert_eq!(shards, Placement { cpus: expected, warning: None }, "{allowed:?} {quota:?}");
    }
}

#[test]
fn a_number_of_shards_is_pinned_where_each_has_a_cpu_of_its_own() {
    let four = cpus(&[0, 1, 2, 3], None);
    assert_eq!(four.shards_for(&Shards::Count(1)).unwrap().cpus, [None], "not all proxies on CPU 0");
    assert_eq!(four.shards_for(&Shards::Count(4)).unwrap().cpus, [Some(0), Some(1), Some(2), Some(3)]);
    let beyond = four.shards_for(&Shards::Count(6)).unwrap();
    assert_eq!(beyond.cpus, [Some(0), Some(1), Some(2), Some(3), None, None]);
    let warning = beyond.warning.unwrap();
    assert!(warning.contains("6 shards on 4 CPUs") && warning.contains("shards = 4"), "{warning}");
}

#[test]
fn shards_beyond_the_quota_are_allowed_with_a_warning() {
    let shards = cpus(&[0, 1, 2, 3], Some(1.5)).shards_for(&Shards::Count(2)).unwrap();
    assert_eq!(shards.cpus.len(), 2);
    let warning = shards.warning.unwrap();
    assert!(
        warning.contains("1.5 CPUs") && warning.contains("cpu.max") && warning.contains("shards = 1"),
        "{warning}"
    );
}

#[test]
fn named_cpus_are_used_as_named_or_refused() {
    let allowed = cpus(&[0, 2, 3], None);
    let named = |cpus: &[usize]| allowed.shards_for(&Shards::Cpus(cpus.to_vec()));
    assert_eq!(named(&[3, 0]).unwrap(), Placement { cpus: vec![Some(3), Some(0)], warning: None });
    let refused = named(&[0, 1]).unwrap_err();
    assert_eq!(refused, ShardsError::NotAllowed { cpu: 1, allowed: "0,2-3".into() });
    assert!(refused.to_string().contains("CPU 1 is not among those that this process may use (0,2-3)"));
    assert_eq!(named(&[2, 2]), Err(ShardsError::Repeated(2)));
    assert_eq!(named(&[]), Err(ShardsError::None));
    assert_eq!(allowed.shards_for(&Shards::Count(0)), Err(ShardsError::None));
}

#[test]
fn a_pod_on_version_2_sees_its_limit_at_the_root_of_its_namespace() {
    let files = [
        ("/proc/self/cgroup", "0::/\n"),
        (
            "/proc/self/mountinfo",
            "728 720 0:27 / /sys/fs/cgroup ro,nosuid,nodev,noexec,relatime - cgroup2 cgroup rw,nsdelegate,memory_recursiveprot\n",
        ),
        ("/sys/fs/cgroup/cpu.max", "50000 100000\n"),
    ];
    assert_eq!(quota(&files), Some((0.5, "/sys/fs/cgroup/cpu.max".into())));
}

#[test]
fn a_systemd_service_is_limited_by_the_tightest_group_above_it() {
    let files = [
        ("/proc/self/cgroup", "0::/system.slice/mesh.slice/ringmesh.service\n"),
        (
            "/proc/self/mountinfo",
            "34 24 0:29 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate\n",
        ),
        ("/sys/fs/cgroup/system.slice/mesh.slice/ringmesh.service/cpu.max", "400000 100000\n"),
        ("/sys/fs/cgroup/system.slice/mesh.slice/cpu.max", "150000 100000\n"),
        ("/sys/fs/cgroup/system.slice/cpu.max", "max 100000\n"),
    ];
    assert_eq!(quota(&files), Some((1.5, "/sys/fs/cgroup/system.slice/mesh.slice/cpu.max".into())));
}

#[test]
fn a_container_on_version_1_without_namespace_finds_its_own_group() {
    let files = [
        (
            "/proc/self/cgroup",
            "11:memory:/docker/4f1c\n4:cpu,cpuacct:/docker/4f1c\n1:name=systemd:/docker/4f1c\n0::/system.slice/containerd.service\n",
        ),
        (
            "/proc/self/mountinfo",
            "1042 1041 0:33 /docker/4f1c /sys/fs/cgroup/memory ro,relatime master:13 - cgroup cgroup rw,memory\n\
             1043 1041 0:34 /docker/4f1c /sys/fs/cgroup/cpu,cpuacct ro,relatime master:14 - cgroup cgroup rw,cpu,cpuacct\n",
        ),
        ("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "200000\n"),
        ("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n"),
    ];
    assert_eq!(quota(&files), Some((2.0, "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us".into())));
}

#[test]
fn a_machine_without_limits_has_no_quota() {
    // Version 1, each controller mounted by itself; no cpu.max at the root of version 2; -1 for none.
    let files = [
        ("/proc/self/cgroup", "3:cpuset:/\n2:cpuacct:/\n1:cpu:/\n0::/\n"),
        (
            "/proc/self/mountinfo",
            "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
             32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
             33 31 0:30 / /sys/fs/cgroup/cpuacct rw,relatime - cgroup cgroup rw,cpuacct\n",
        ),
        ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n"),
        ("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"),
    ];
    assert_eq!(quota(&files), None);
    assert_eq!(quota(&[]), None, "nothing can be read");
}

#[test]
fn the_tightest_limit_on_memory_up_to_the_root_counts() {
    let limit = |own: &str, above: &str| {
        find_memory_limit(|path| match path.to_str()? {
            "/proc/self/cgroup" => Some("0::/pod/app\n".into()),
            "/proc/self/mountinfo" => {
                Some("30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n".into())
            }
            "/sys/fs/cgroup/pod/app/memory.max" => Some(own.into()),
            "/sys/fs/cgroup/pod/memory.max" => Some(above.into()),
            // The root has none.
            _ => None,
        })
    };
    assert_eq!(limit("max\n", "max\n"), None);
    assert_eq!(limit("max\n", "536870912\n"), Some(512 << 20));
    assert_eq!(limit("1048576\n", "536870912\n"), Some(1 << 20));
    assert_eq!(find_memory_limit(|_| None), None);
}

#[test]
fn a_group_outside_of_what_is_mounted_counts_by_the_top_of_the_mount() {
    let point = PathBuf::from("/sys/fs/cgroup");
    let mount = |root: &str| Mount { root: root.into(), point: point.clone() };
    assert_eq!(mount("/").folders("/../other"), vec![point.clone()]);
    assert_eq!(mount("/docker/4f1c").folders("/elsewhere"), vec![point.clone()]);
    assert_eq!(mount("/").folders("/a/b"), [point.join("a/b"), point.join("a"), point.clone()]);
    assert_eq!(mount("/docker").folders("/docker/a"), [point.join("a"), point.clone()]);
}

#[test]
fn numbers_of_the_kernel_are_read_or_left_alone() {
    assert_eq!(parse_cpu_max("max 100000\n"), None);
    assert_eq!(parse_cpu_max("25000 50000"), Some(0.5));
    assert_eq!(parse_cpu_max("150000"), Some(1.5));
    for nonsense in ["", "\n", "x y", "100000 0", "0 100000", "inf 100000", "NaN 100000", "-1 100000"] {
        assert_eq!(parse_cpu_max(nonsense), None, "{nonsense:?}");
    }
    assert_eq!(parse_cpu_list("0-3,8,10-11\n"), Some(vec![0, 1, 2, 3, 8, 10, 11]));
    for nonsense in ["", "a", "1-", "0-18446744073709551615", "3;4"] {
        assert_eq!(parse_cpu_list(nonsense), None, "{nonsense:?}");
    }
    assert_eq!(ranges(&[0, 1, 2, 3, 8, 10, 11]), "0-3,8,10-11");
    assert_eq!(parse_kernel("6.8.0-45-generic"), Some((6, 8)));
    assert_eq!(parse_kernel("5.10.226-214.880.amzn2.x86_64"), Some((5, 10)));
    assert_eq!(parse_kernel("6.12"), Some((6, 12)));
    for nonsense in ["", "six", "6", "99999999999.1"] {
        assert_eq!(parse_kernel(nonsense), None, "{nonsense:?}");
    }
}

#[test]
fn rights_are_read_from_the_status_file() {
    let status = "Name:\tringmesh\nCapInh:\t0000000000000000\nCapEff:\t00000000a80425fb\nSeccomp:\t2\nSeccomp_filters:\t1\nCpus_allowed_list:\t0-1\n";
    assert_eq!(status_field(status, "Seccomp"), Some("2"));
    assert_eq!(status_field(status, "Cpus_allowed_list"), Some("0-1"));
    assert_eq!(status_field(status, "CapBnd"), None);
    let docker = parse_capabilities(status_field(status, "CapEff").unwrap()).unwrap();
    assert!(!has_net_admin(docker), "Docker's default set");
    assert!(has_net_admin(parse_capabilities("000001ffffffffff").unwrap()), "root");
    assert!(has_net_admin(1 << 12) && !has_net_admin(1 << 13));
}

#[test]
fn this_machine_can_be_looked_at() {
    let machine = Machine::look();
    assert!(!machine.cpus.allowed.is_empty());
    assert!(machine.kernel_version() > (3, 0), "{}", machine.kernel);
    assert!(machine.cpus.allowed.is_sorted());
    assert_eq!(machine.rings.len(), 3);
    let shards = shards_for(&Shards::Auto).unwrap();
    assert!((1..=machine.cpus.allowed.len()).contains(&shards.cpus.len()));
    if let Some(status) = read(Path::new("/proc/self/status")) {
        let listed = parse_cpu_list(status_field(&status, "Cpus_allowed_list").unwrap());
        assert_eq!(listed, Some(machine.cpus.allowed), "two ways of asking agree");
    }
}

fn cpus(allowed: &[usize], quota: Option<f64>) -> Cpus {
    let quota = quota.map(|cpus| Quota { cpus, source: "/sys/fs/cgroup/cpu.max".into() });
    Cpus { allowed: allowed.to_vec(), quota }
}

fn quota(files: &[(&str, &str)]) -> Option<(f64, PathBuf)> {
    let files: HashMap<&Path, &str> = files.iter().map(|(path, text)| (Path::new(path), *text)).collect();
    find_quota(|path| files.get(path).map(|text| (*text).to_owned())).map(|quota| (quota.cpus, quota.source))
}
