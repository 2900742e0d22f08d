use super::*;
use crate::export::tests::full_record;

/// What OCSF 1.8.0 asks of an object, as far as events of this broker use it.
///
/// Source: the schema's own repository, ocsf/ocsf-schema, branch v1.8.0: events/base_event.json, events/iam/iam.json,
/// events/iam/authentication.json, dictionary.json, and objects/ metadata, product, user, actor, service, session,
/// http_request, endpoint, network_endpoint. An attribute that is not listed here is looked up there before it is added.
struct Object {
    attributes: &'static [(&'static str, Kind)],
    required: &'static [&'static str],
    /// The constraint `at_least_one`.
    at_least_one: &'static [&'static str],
}

enum Kind {
    Text,
    /// `integer_t`, `long_t`
    Integer,
    /// `timestamp_t`: milliseconds since 1970
    Timestamp,
    Port,
    Ip,
    Boolean,
    /// One of these numbers, and what the attribute beside it of this name says for each; 99 says what it likes.
    Enum(&'static str, &'static [(u64, &'static str)]),
    Object(&'static Object),
    /// Of any attributes.
    Free,
}

const AUTHENTICATION: Object = Object {
    required: &["activity_id", "category_uid", "class_uid", "metadata", "severity_id", "time", "type_uid", "user"],
    at_least_one: &["service", "dst_endpoint"],
    attributes: &[
        (
            "activity_id",
            Kind::Enum(
                "activity_name",
                &[
                    (0, "Unknown"),
                    (1, "Logon"),
                    (2, "Logoff"),
                    (3, "Authentication Ticket"),
                    (4, "Service Ticket Request"),
                    (5, "Service Ticket Renew"),
                    (6, "Preauth"),
                    (7, "Account Switch"),
                ],
            ),
        ),
        ("activity_name", Kind::Text),
        ("category_uid", Kind::Enum("category_name", &[(3, "Identity & Access Management")])),
        ("category_name", Kind::Text),
        ("class_uid", Kind::Enum("class_name", &[(3002, "Authentication")])),
        ("class_name", Kind::Text),
        ("type_uid", Kind::Integer),
        ("type_name", Kind::Text),
        (
            "severity_id",
            Kind::Enum(
                "severity",
                &[
                    (0, "Unknown"),
                    (1, "Informational"),
                    (2, "Low"),
                    (3, "Medium"),
                    (4, "High"),
                    (5, "Critical"),
                    (6, "Fatal"),
                ],
            ),
        ),
        ("severity", Kind::Text),
        ("status_id", Kind::Enum("status", &[(0, "Unknown"), (1, "Success"), (2, "Failure")])),
        ("status", Kind::Text),
        ("status_code", Kind::Text),
        ("status_detail", Kind::Text),
        ("time", Kind::Timestamp),
        ("message", Kind::Text),
        ("metadata", Kind::Object(&METADATA)),
        ("user", Kind::Object(&USER)),
        ("actor", Kind::Object(&ACTOR)),
        ("service", Kind::Object(&SERVICE)),
        ("src_endpoint", Kind::Object(&NETWORK_ENDPOINT)),
        ("http_request", Kind::Object(&HTTP_REQUEST)),
        ("session", Kind::Object(&SESSION)),
        ("auth_protocol_id", Kind::Enum("auth_protocol", &[(4, "OpenID"), (6, "OAUTH 2.0")])),
        ("auth_protocol", Kind::Text),
        ("logon_type_id", Kind::Enum("logon_type", &[(0, "Unknown"), (3, "Network"), (4, "Batch")])),
        ("logon_type", Kind::Text),
        ("is_remote", Kind::Boolean),
        ("unmapped", Kind::Free),
    ],
};

const METADATA: Object = Object {
    required: &["product", "version"],
    at_least_one: &[],
    attributes: &[
        ("version", Kind::Text),
        ("product", Kind::Object(&PRODUCT_OBJECT)),
        ("log_name", Kind::Text),
        ("uid", Kind::Text),
        ("event_code", Kind::Text),
        ("correlation_uid", Kind::Text),
        ("original_time", Kind::Text),
        ("tenant_uid", Kind::Text),
        ("sequence", Kind::Integer),
    ],
};

const PRODUCT_OBJECT: Object = Object {
    required: &[],
    at_least_one: &["name", "uid"],
    attributes: &[("name", Kind::Text), ("vendor_name", Kind::Text), ("version", Kind::Text)],
};

const USER: Object = Object {
    required: &[],
    at_least_one: &["account", "name", "uid"],
    attributes: &[
        ("uid", Kind::Text),
        ("uid_alt", Kind::Text),
        ("name", Kind::Text),
        ("domain", Kind::Text),
        ("type", Kind::Text),
        ("type_id", Kind::Enum("type", &[(0, "Unknown"), (1, "User"), (2, "Admin"), (3, "System"), (4, "Service")])),
    ],
};

const ACTOR: Object = Object {
    required: &[],
    at_least_one: &["process", "user", "invoked_by", "session", "app_name", "app_uid"],
    attributes: &[("app_uid", Kind::Text)],
};

const SERVICE: Object =
    Object { required: &[], at_least_one: &["name", "uid"], attributes: &[("name", Kind::Text), ("uid", Kind::Text)] };

const NETWORK_ENDPOINT: Object = Object {
    required: &[],
    at_least_one: &[
        "ip",
        "uid",
        "name",
        "hostname",
        "svc_name",
        "instance_uid",
        "interface_uid",
        "interface_name",
        "domain",
    ],
    attributes: &[("ip", Kind::Ip), ("port", Kind::Port), ("name", Kind::Text)],
};

const HTTP_REQUEST: Object = Object { required: &[], at_least_one: &[], attributes: &[("user_agent", Kind::Text)] };

const SESSION: Object = Object {
    required: &[],
    at_least_one: &[],
    attributes: &[
        ("uid", Kind::Text),
        ("created_time", Kind::Timestamp),
        ("expiration_time", Kind::Timestamp),
        ("credential_uid", Kind::Text),
        ("is_remote", Kind::Boolean),
    ],
};

impl Object {
    fn check(&self, at: &str, value: &Value) {
        let object = value.as_object().unwrap_or_else(|| panic!("{at} is no object: {value}"));
        for required in self.required {
            assert!(object.contains_key(*required), "{at} has no {required}");
        }
        let constrained = self.at_least_one.is_empty() || self.at_least_one.iter().any(|one| object.contains_key(*one));
        assert!(constrained, "{at} has none of {:?}", self.at_least_one);
        for (name, value) in object {
            let known = self.attributes.iter().find(|(known, _kind)| known == name);
            let (_name, kind) = known.unwrap_or_else(|| panic!("OCSF knows no {at}.{name}"));
            kind.check(&format!("{at}.{name}"), value, object);
        }
    }
}

impl Kind {
    fn check(&self, at: &str, value: &Value, beside: &Map<String, Value>) {
        let good = match self {
            Self::Text => value.as_str().is_some_and(|text| !text.is_empty()),
            Self::Integer => value.is_i64() || value.is_u64(),
            Self::Timestamp => value.as_i64().is_some(),
            Self::Port => value.as_u64().is_some_and(|port| port <= 65_535),
            Self::Ip => value.as_str().is_some_and(|text| text.parse::<IpAddr>().is_ok()),
            Self::Boolean => value.is_boolean(),
            Self::Enum(sibling, known) => {
                let number = value.as_u64().unwrap_or_else(|| panic!("{at} is {value}"));
                let caption = beside.get(*sibling).and_then(Value::as_str);
                number == 99 && caption.is_some()
                    || known.iter().any(|known| *known == (number, caption.unwrap_or_default()))
            }
            Self::Object(object) => {
                object.check(at, value);
                true
            }
            Self::Free => value.is_object(),
        };
        assert!(good, "{at} is {value}");
    }
}

/// Every shape that a record can have.
fn records() -> Vec<AuditRecord> {
    let full = full_record();
    let mut records = vec![AuditRecord::default()];
    for action in [
        "exchange",
        "lease.open",
        "lease.credentials",
        "lease.extend",
        "lease.close",
        "lease.expire",
        "lease.revoke",
        "operator.explain",
        "broker.start",
    ] {
        for outcome in ["issued", "denied", "failed", "done"] {
            let mut record = AuditRecord { action: action.to_owned(), outcome: outcome.to_owned(), ..full.clone() };
            records.push(record.clone());
            record.reason = "DENIED".to_owned();
            record.attributes =
                [("denial", "no rule"), ("peer", "unix")].map(|(n, v)| (n.to_owned(), v.to_owned())).into();
            records.push(record.clone());
            (record.subject, record.client_id, record.target) = (String::new(), String::new(), String::new());
            record.attributes.insert("peer".to_owned(), "::1".to_owned());
            records.push(record);
        }
    }
    records
}

#[test]
fn every_event_has_what_the_schema_requires_and_nothing_that_it_does_not_know() {
    for record in records() {
        let event = ocsf(&record);
        AUTHENTICATION.check("event", &event);
        let type_uid =
            event["class_uid"].as_u64().zip(event["activity_id"].as_u64()).map(|(class, id)| class * 100 + id);
        assert_eq!(event["type_uid"].as_u64(), type_uid);
        assert_eq!(event["metadata"]["version"], "1.8.0");
    }
}

#[test]
fn a_hand_out_is_a_logon_that_names_who_where_from_and_until_when() {
    let event = ocsf(&full_record());
    assert_eq!((&event["type_uid"], &event["status"]), (&json!(300_201), &json!("Success")));
    assert_eq!(event["time"], 1_795_280_401_500_u64);
    assert_eq!(event["user"]["uid_alt"], "66666666-6666-6666-6666-666666666666");
    assert_eq!(event["user"]["domain"], "11111111-1111-1111-1111-111111111111");
    assert_eq!(event["actor"], json!({"app_uid": "55555555-5555-5555-5555-555555555555"}));
    assert_eq!(event["service"], json!({"name": "vertex"}));
    assert_eq!(event["src_endpoint"], json!({"ip": "10.0.0.7", "port": 50001}));
    assert_eq!(event["http_request"], json!({"user_agent": "grpc-python/1.70"}));
    let session = json!({
        "uid": "c2hhMjU2",
        "credential_uid": "c2hhMjU2",
        "created_time": 1_795_280_400_000_u64,
        "expiration_time": 1_795_284_000_000_u64,
        "is_remote": true,
    });
    assert_eq!(event["session"], session);
    assert_eq!(event["metadata"]["uid"], "0199a1b2-0000-7000-8000-00000000000c:7");
    assert_eq!(event["metadata"]["correlation_uid"], "0199a1b2-0000-7000-8000-000000000001");
    assert_eq!((&event["unmapped"]["rule"], &event["unmapped"]["job"]["id"]), (&json!("training"), &json!("run-1")));
}

#[test]
fn a_denial_is_a_failure_with_its_reason() {
    let mut record = AuditRecord { outcome: "denied".to_owned(), reason: "DENIED".to_owned(), ..full_record() };
    record.attributes.insert("denial".to_owned(), "no rule allows it".to_owned());
    let event = ocsf(&record);
    assert_eq!((&event["status_id"], &event["status"]), (&json!(2), &json!("Failure")));
    assert_eq!((&event["status_code"], &event["status_detail"]), (&json!("DENIED"), &json!("no rule allows it")));
    assert_eq!(event["severity"], "Low");
}
