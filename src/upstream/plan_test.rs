use super::super::spec::testing::service;
use super::super::spec::{Choice, Labels, Subset};
use super::*;

fn labels(version: &str) -> Labels {
    vec![("version".into(), version.into())]
}

fn subset(name: &str, fallback: Fallback) -> Subset {
    Subset { name: name.into(), labels: labels(name), fallback }
}

/// Endpoints 0 to 3 are v1, 4 and 5 are v2.
fn versions(subsets: Vec<Subset>) -> Service {
    let mut service = service(Balance::Random, &[1, 2, 1, 1, 3, 3]);
    for (n, endpoint) in service.endpoints.iter_mut().enumerate() {
        endpoint.labels = Some(Arc::new(labels(if n < 4 { "v1" } else { "v2" })));
    }
    service.choice = Some(Box::new(Choice { subsets, ..Choice::DEFAULT }));
    service
}

fn members(plan: &Plan, subset: u16) -> Vec<usize> {
    let set = plan.set(subset).unwrap();
    let groups = &plan.groups()[set.groups.start as usize..set.groups.end as usize];
    groups.iter().flat_map(|group| (0..group.len).map(|place| group.endpoint(place))).collect()
}

#[test]
fn a_service_without_conditions_is_one_group() {
    let service = service(Balance::PeakEwma, &[1; 4]);
    let plan = service.plan();
    assert_eq!((plan.sets().len(), plan.groups().len()), (1, 1));
    assert!(plan.groups()[0].endpoints.is_none() && plan.groups()[0].table.is_none());
    assert_eq!(members(plan, 0), [0, 1, 2, 3]);
}

#[test]
fn a_subset_has_its_endpoints_and_else_what_it_falls_back_to() {
    let service = versions(vec![
        subset("v1", Fallback::None),
        subset("v2", Fallback::None),
        subset("v3", Fallback::None),
        subset("v4", Fallback::Any),
        subset("v5", Fallback::Subset(1)),
        subset("v6", Fallback::Subset(2)),
    ]);
    let plan = service.plan();
    let expected: [&[usize]; 7] =
        [&[0, 1, 2, 3, 4, 5], &[0, 1, 2, 3], &[4, 5], &[], &[0, 1, 2, 3, 4, 5], &[4, 5], &[]];
    for (n, expected) in expected.iter().enumerate() {
        assert_eq!(members(plan, n as u16), *expected, "{n}");
        assert_eq!(plan.endpoints_of(n as u16), expected.len());
    }
    assert!(plan.set(7).is_none());
    assert_eq!(service.subset_named("v2"), Some(2));
    assert_eq!(service.subset_named("v7"), None);
    // Weights within it: equal ones are drawn evenly.
    assert!(matches!(plan.groups()[plan.set(2).unwrap().groups.start as usize].shares, Shares::Equal));
}

#[test]
fn priorities_and_zones_part_a_set_and_keys_know_no_zone() {
    let parted = |balance| {
        let mut service = service(balance, &[1; 9]);
        for (n, endpoint) in service.endpoints.iter_mut().enumerate() {
            endpoint.zone = Some(["a", "b"][n % 2].into());
            endpoint.priority = if n == 8 { 3 } else { 0 };
        }
        service.choice = Some(Box::new(Choice { own_zone: Some("b".into()), ..Choice::DEFAULT }));
        service
    };
    let service = parted(Balance::LeastRequest);
    let plan = service.plan();
    assert_eq!(plan.groups().len(), 3);
    let tiers = &plan.set(0).unwrap().tiers;
    assert_eq!(tiers.len(), 2);
    assert_eq!((tiers[0].own.map(|own| own.0), tiers[1].own), (Some(1), None));
    assert_eq!(members(plan, 0), [0, 2, 4, 6, 1, 3, 5, 7, 8]);
    assert_eq!(parted(Balance::Maglev).plan().groups().len(), 2);
}
