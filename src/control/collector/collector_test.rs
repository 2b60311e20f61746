use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use prost::Message;

use super::*;
use crate::telemetry::spans::Chunk;

fn target(text: &str) -> Target {
    let text = format!(
        "[tracing]\nendpoint = \"http://127.0.0.1:1\"\n{text}\n[[listener]]\naddress = \"127.0.0.1:0\"\n"
    );
    let compiled = crate::config::parse("test.toml", &text, &|_| None).unwrap().compiled;
    Target::of(&compiled, &Presented::default(), None).unwrap()
}

#[test]
fn a_request_is_what_the_protocols_own_types_read() {
    let target =
        target("service_name = \"shop\"\nattributes = { \"deployment.environment.name\" = \"test\" }");
    // A span with a name and nothing else.
    let spans = [2 << 3 | 2, 5, 5 << 3 | 2, 3, b'G', b'E', b'T'];
    let message = messages::request(&target, "me", &spans);
    let request = ExportTraceServiceRequest::decode(&*message).unwrap();
    let [of_resource] = &request.resource_spans[..] else { panic!("{request:?}") };
    let attributes: Vec<_> = of_resource
        .resource
        .as_ref()
        .unwrap()
        .attributes
        .iter()
        .map(|one| match one.value.clone().unwrap().value.unwrap() {
            Value::StringValue(value) => format!("{}={value}", one.key),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(
        attributes,
        ["service.name=shop", "service.instance.id=me", "deployment.environment.name=test"]
    );
    let scope = &of_resource.scope_spans[0];
    assert_eq!(scope.scope.as_ref().unwrap().name, "ringmesh");
    assert_eq!(scope.spans[0].name, "GET");
}

#[test]
fn an_instance_is_a_random_uuid() {
    let (one, other) = (messages::instance(), messages::instance());
    assert_ne!(one, other);
    let parts: Vec<&str> = one.split('-').collect();
    assert_eq!(parts.iter().map(|part| part.len()).collect::<Vec<_>>(), [8, 4, 4, 4, 12], "{one}");
    assert!(parts[2].starts_with('4') && "89ab".contains(&parts[3][..1]), "{one}");
}

fn stock(link: &Arc<Link>) -> Stock {
    let counts = Arc::default();
    Stock { links: vec![Arc::clone(link)], waiting: VecDeque::new(), octets: 0, since: None, counts }
}

#[test]
fn no_more_waits_than_may_and_shards_get_their_chunks_back() {
    let (link, _bell) = Link::new(0).unwrap();
    let mut stock = stock(&link);
    for _ in 0..10 {
        link.spans.push(Chunk { octets: vec![0; 1000], spans: 7 }).unwrap();
    }
    stock.gather(3500);
    assert_eq!((stock.octets, link.spans.len(), link.spent_spans.len()), (4000, 6, 4));
    assert!(link.spent_spans.pop().is_some_and(|chunk| chunk.octets.is_empty() && chunk.spans == 0));
    assert_eq!(stock.counts.waiting.load(Ordering::Relaxed), 28);
}

#[test]
fn a_batch_is_full_or_has_waited() {
    let (link, _bell) = Link::new(0).unwrap();
    let mut stock = stock(&link);
    let now = Instant::now();
    assert!(stock.batch(now, true).is_none(), "there is nothing");
    link.spans.push(Chunk { octets: vec![0; 1000], spans: 7 }).unwrap();
    stock.gather(usize::MAX);
    let soon = Instant::now();
    assert!(stock.batch(now, false).is_none());
    assert_eq!(stock.batch(soon + Stock::LINGER, false).unwrap().count, 7);
    for _ in 0..4 {
        link.spans.push(Chunk { octets: vec![0; 1000], spans: 200 }).unwrap();
    }
    stock.gather(usize::MAX);
    let batch = stock.batch(now, false).unwrap();
    assert_eq!((batch.count, batch.octets.len()), (600, 3000), "full");
    assert!(stock.batch(now, false).is_none());
    assert_eq!(stock.batch(now, true).unwrap().count, 200, "and at the end whatever there is");
    for _ in 0..20 {
        link.spans.push(Chunk { octets: vec![0; 64 << 10], spans: 1 }).unwrap_or(());
    }
    stock.gather(usize::MAX);
    assert_eq!(stock.batch(now, true).unwrap().octets.len(), 1 << 20, "no larger than a collector takes");
}
