//! What a checker's answer must look like: exactly `{"decision": "commit"}`, or another of the four words. Whatever else
//! it is, it is no answer: nobody guesses.

use super::ask::NoAnswer;
use crate::tx::check_back::Answer;
use serde::Deserialize;

/// Bytes of an answer.
pub(super) const ANSWER_BYTES_MAX: usize = 64 * 1024;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    decision: String,
}

/// Reads an answer's body.
pub(super) fn read(body: &[u8]) -> Result<Answer, NoAnswer> {
    if body.len() > ANSWER_BYTES_MAX {
        return Err(NoAnswer::new(format_args!("the answer has more than {ANSWER_BYTES_MAX} bytes")));
    }
    // The parser would take the array ["commit"] for the object too.
    if !body.trim_ascii_start().starts_with(b"{") {
        return Err(NoAnswer::new("the answer is not a JSON object"));
    }
    let Body { decision } = serde_json::from_slice(body)
        .map_err(|error| NoAnswer::new(format_args!("the answer is not {{\"decision\": …}}: {error}")))?;
    Answer::of(&decision)
        .ok_or_else(|| NoAnswer::new(format_args!("`{decision}` is none of commit, rollback, unknown and ongoing")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tx::decision::Decision;

    #[test]
    fn the_four_words_are_answers() {
        let commit = Answer::Decision(Decision::Commit);
        for (body, answer) in [
            (r#"{"decision":"commit"}"#, commit),
            (" {\n\"decision\" : \"rollback\" }\r\n", Answer::Decision(Decision::RollBack)),
            (r#"{"decision":"unknown"}"#, Answer::Unknown),
            (r#"{"decision":"ongoing"}"#, Answer::Ongoing),
            (r#"{"decision":"\u0063ommit"}"#, commit),
        ] {
            assert_eq!(read(body.as_bytes()), Ok(answer), "{body}");
        }
    }

    #[test]
    fn nothing_else_is() {
        for body in [
            "",
            "commit",
            "\"commit\"",
            "[\"commit\"]",
            "{}",
            "null",
            r#"{"decision":null}"#,
            r#"{"decision":1}"#,
            r#"{"decision":true}"#,
            r#"{"decision":["commit"]}"#,
            r#"{"decision":{"commit":null}}"#,
            r#"{"decision":"COMMIT"}"#,
            r#"{"decision":"commit "}"#,
            r#"{"decision":"rolled_back"}"#,
            r#"{"Decision":"commit"}"#,
            r#"{"decision":"commit","reason":"x"}"#,
            r#"{"decision":"commit","decision":"commit"}"#,
            r#"{"decision":"commit"}{"decision":"commit"}"#,
            r#"{"decision":"commit"} x"#,
            r#"{"decision":"commit""#,
            "\u{feff}{\"decision\":\"commit\"}",
        ] {
            assert!(read(body.as_bytes()).is_err(), "{body}");
        }
        let long = format!("{}{{\"decision\":\"commit\"}}", " ".repeat(ANSWER_BYTES_MAX));
        assert!(read(long.as_bytes()).unwrap_err().to_string().contains("more than 65536 bytes"));
        assert!(read(b"{\"decision\":\"\xff\"}").is_err());
    }

    #[test]
    fn a_reason_quotes_little_and_no_control_characters() {
        let body = format!("{{\"decision\":\"{}\\n\\u001b[31m\"}}", "x".repeat(50));
        let reason = read(body.as_bytes()).unwrap_err().to_string();
        assert!(!reason.contains(char::is_control), "{reason:?}");
        let body = format!("{{\"decision\":\"{}\"}}", "ü".repeat(5_000));
        assert!(read(body.as_bytes()).unwrap_err().to_string().chars().count() < 300);
    }
}
