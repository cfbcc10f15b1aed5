//! Every `vectorctl …` that the documents tell is one that can be typed.

use clap::{CommandFactory as _, Parser as _, error::ErrorKind};

use super::{Arguments, Command, Routes};

const DOCUMENTS: &[(&str, &str)] = &[
    ("README.md", include_str!("../../../../README.md")),
    (
        "deploy/README.md",
        include_str!("../../../../deploy/README.md"),
    ),
];

/// A command as a document has it, and whether it is whole: what stands in a sentence may leave out what follows.
#[derive(Debug, PartialEq)]
struct Told {
    words: Vec<String>,
    whole: bool,
}

/// Every command of ours in fenced blocks and in code spans.
fn commands(text: &str) -> Vec<Told> {
    let mut told = Vec::new();
    let (mut fenced, mut joined) = (false, String::new());
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
            continue;
        }
        if !fenced {
            for span in line.split('`').skip(1).step_by(2) {
                if span.starts_with("vectorctl ") && !span.contains('…') {
                    told.extend(of_line(span, false));
                }
            }
        } else if let Some(part) = line.strip_suffix('\\') {
            joined += part;
        } else {
            told.extend(of_line(&(std::mem::take(&mut joined) + line), true));
        }
    }
    told
}

/// What ends a simple command and begins the next.
const OPERATORS: &[&str] = &["|", ";", "&&", "||", ">", "<", "(", ")"];

/// What runs the command behind it: a container named `control`, or whatever takes `--` before it.
const RUNNERS: &[&str] = &["control", "control-1", "--", "sudo", "exec"];

/// The commands of one line of shell. `ctl` is what the runbook calls ours on Kubernetes.
fn of_line(line: &str, whole: bool) -> Vec<Told> {
    let line = line.replace("\"$(", " $(").replace(")\"", ")");
    let mut told = Vec::new();
    let mut current: Option<Vec<String>> = None;
    let mut first = true;
    for word in words(&line) {
        let operator = OPERATORS.contains(&word.as_str());
        let ours = word == "vectorctl" || word == "ctl" || word.ends_with("/vectorctl");
        match &mut current {
            Some(_) if operator => {
                told.extend(current.take().map(|words| Told { words, whole }));
            }
            Some(command) => command.push(word.clone()),
            None if ours && first => current = Some(vec!["vectorctl".to_owned()]),
            None => {}
        }
        first = operator || RUNNERS.contains(&word.as_str());
    }
    told.extend(current.map(|words| Told { words, whole }));
    told
}

/// Words as a shell parts them, as far as documents need it: quotes, comments, `$(…)` and operators.
fn words(line: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut word = String::new();
    let mut quote = None;
    let mut letters = line.chars().peekable();
    while let Some(letter) = letters.next() {
        match (quote, letter) {
            (Some(open), _) if letter == open => quote = None,
            (Some(_), _) => word.push(letter),
            (None, '\'' | '"') => quote = Some(letter),
            (None, '#') if word.is_empty() => break,
            (None, '$') if letters.peek() == Some(&'(') => {
                letters.next();
                words.extend(take(&mut word));
                words.push("(".to_owned());
            }
            (None, '|' | ';' | '&' | '>' | '<' | '(' | ')') => {
                words.extend(take(&mut word));
                let mut operator = letter.to_string();
                while letters.peek() == Some(&letter) {
                    operator.extend(letters.next());
                }
                words.push(operator);
            }
            (None, ' ' | '\t') => words.extend(take(&mut word)),
            (None, _) => word.push(letter),
        }
    }
    words.extend(take(&mut word));
    words
}

fn take(word: &mut String) -> Option<String> {
    Some(std::mem::take(word)).filter(|word| !word.is_empty())
}

/// Why it cannot be typed.
fn fault(told: &Told) -> Option<String> {
    let error = Arguments::try_parse_from(&told.words).err()?;
    let cut = matches!(
        error.kind(),
        ErrorKind::MissingRequiredArgument
            | ErrorKind::MissingSubcommand
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    );
    (told.whole || !cut).then(|| error.to_string())
}

#[test]
fn the_arguments_are_sound() {
    Arguments::command().debug_assert();
}

#[test]
fn every_command_that_is_told_can_be_typed() {
    for (name, text) in DOCUMENTS {
        let told = commands(text);
        assert!(told.len() > 5, "{name}: {told:?}");
        for command in told {
            let fault = fault(&command);
            assert!(fault.is_none(), "{name}: {command:?}: {fault:?}");
        }
    }
}

#[test]
fn nodes_and_routes_can_be_asked_for_by_their_plural() {
    let typed = |words: &str| {
        let words = words.split(' ');
        Arguments::try_parse_from(words).map(|typed| typed.command)
    };
    assert!(matches!(typed("vectorctl nodes"), Ok(Command::Nodes)));
    let plain = typed("vectorctl explain gpt-x --region eu").unwrap();
    let Command::Explain(plain) = plain else {
        panic!("{plain:?}");
    };
    let same = typed("vectorctl routes explain gpt-x --region eu").unwrap();
    assert!(
        matches!(&same, Command::Routes(Routes::Explain(same))
            if (&same.model, &same.region) == (&plain.model, &plain.region)),
        "{same:?}"
    );
}

#[test]
fn commands_that_do_not_exist_are_found() {
    let text = "`vectorctl apply` and `vectorctl fly`\n```sh\nx=$(vectorctl node list --json | head) # vectorctl hop\n\
        docker compose exec control vectorctl node \\\n  invite --role egress\ninstall vectorctl /usr/bin\n\
        x --literal=a=\"$(ctl key jump)\"\n```\n";
    let told = commands(text);
    let wrong: Vec<String> = told
        .iter()
        .filter(|told| fault(told).is_some())
        .map(|told| told.words.join(" "))
        .collect();
    assert_eq!(told.len(), 5, "{told:?}");
    assert_eq!(
        wrong,
        [
            "vectorctl fly",
            "vectorctl node invite --role egress",
            "vectorctl key jump"
        ]
    );
}
