//! Published test vectors that lie beside the project, in the directory that `CARNET_TEST_VECTORS` names.

use std::io::Write as _;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

/// Wycheproof's sets of JSON Web Signatures and Keys.
#[derive(Deserialize)]
pub struct Set {
    #[serde(rename = "numberOfTests")]
    number_of_tests: usize,
    #[serde(rename = "testGroups")]
    groups: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    comment: String,
    public: Option<Value>,
    private: Option<Value>,
    tests: Vec<Test>,
}

#[derive(Deserialize)]
struct Test {
    #[serde(rename = "tcId")]
    id: u64,
    comment: String,
    jws: Value,
    result: String,
}

/// A signature, the keys that its verifier has, and what is published of it.
pub struct Vector {
    pub name: String,
    pub keys: Vec<Value>,
    /// `None` where it is not in the compact form.
    pub jws: Option<String>,
    pub is_valid: bool,
}

impl Vector {
    /// `alg` of the header, where it is readable.
    pub fn algorithm(&self) -> Option<String> {
        use base64::Engine as _;
        let header = self.jws.as_ref()?.split('.').next()?;
        let header = base64::prelude::BASE64_URL_SAFE_NO_PAD.decode(header).ok()?;
        Some(serde_json::from_slice::<Value>(&header).ok()?.get("alg")?.as_str()?.to_owned())
    }
}

/// All vectors of both sets; `None`, said aloud, where they are not there.
pub fn of_json_web_signatures() -> Option<Vec<Vector>> {
    let Some(directory) = std::env::var_os("CARNET_TEST_VECTORS") else {
        let test = std::thread::current().name().unwrap_or("a test").to_owned();
        let why = "CARNET_TEST_VECTORS names no directory with Wycheproof's sets in `wycheproof`";
        // Past the harness, which keeps what a test that succeeds prints to itself.
        std::io::stderr().write_all(format!("SKIPPED {test}: {why}\n").as_bytes()).expect("said");
        return None;
    };
    let sets = ["json_web_signature_test.json", "json_web_key_test.json"];
    Some(sets.into_iter().flat_map(|name| read(&Path::new(&directory).join("wycheproof").join(name))).collect())
}

fn read(path: &Path) -> Vec<Vector> {
    let text = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let set: Set = serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut vectors = Vec::new();
    for Group { comment, public, private, tests } in set.groups {
        let key = public.or(private).expect("a key");
        let keys = key.get("keys").and_then(Value::as_array).cloned().unwrap_or_else(|| vec![key]);
        vectors.extend(tests.into_iter().map(|test| Vector {
            name: format!("{} {comment} {}", test.id, test.comment),
            keys: keys.clone(),
            jws: test.jws.as_str().map(str::to_owned),
            is_valid: match test.result.as_str() {
                "valid" => true,
                "invalid" => false,
                other => panic!("{}: a result {other}", test.id),
            },
        }));
    }
    assert_eq!(vectors.len(), set.number_of_tests, "{}", path.display());
    vectors
}
