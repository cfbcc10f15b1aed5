//! What is left of a key's money at its provider: who is asked how, and what the answers mean. Pure.
//!
//! Every kind is one or two `GET`s with the key itself. Sources: DeepSeek's "Get User Balance", OpenRouter's "Get current
//! API key", SiliconFlow's "User info", OpenAI's former dashboard as gateways of the one-api family still serve it.

use std::fmt;

use serde_json::Value;

/// Below this, in millionths of any currency, a key is used after all others: one unit pays for a few large calls.
const LOW_MICROS: i64 = 1_000_000;

/// What gateways of the one-api family say for "without limit", in dollars.
const UNLIMITED: i64 = 100_000_000;

/// Units of quota to a dollar in the same family.
const QUOTA_A_DOLLAR: i64 = 500_000;

/// An amount of money.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Balance {
    /// In 1/1,000,000 of the currency.
    pub micros: i64,
    /// ISO 4217.
    pub currency: Currency,
}

/// Three capital letters.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Currency([u8; 3]);

impl Currency {
    const USD: Self = Self(*b"USD");
    const CNY: Self = Self(*b"CNY");

    fn of(text: &str) -> Option<Self> {
        let letters: [u8; 3] = text.as_bytes().try_into().ok()?;
        letters
            .iter()
            .all(u8::is_ascii_uppercase)
            .then_some(Self(letters))
    }
}

impl fmt::Display for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::str::from_utf8(&self.0).unwrap_or("???"))
    }
}

impl Balance {
    /// Whether other keys are to be used first.
    pub const fn is_low(&self) -> bool {
        self.micros < LOW_MICROS
    }
}

/// Whose API tells balances.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Teller {
    /// `GET /user/balance`.
    DeepSeek,
    /// `GET /api/v1/key`: what is left of the key's own limit, if it has one.
    OpenRouter,
    /// `GET /v1/user/info`.
    SiliconFlow,
    /// `GET /v1/dashboard/billing/subscription`, then `.../usage`.
    Billing,
    /// `GET /api/usage/token`.
    Quota,
}

impl Teller {
    /// By the name of a provider's host.
    pub fn of_host(host: &str) -> Option<Self> {
        let is = |domain: &str| {
            host == domain
                || host
                    .strip_suffix(domain)
                    .is_some_and(|rest| rest.ends_with('.'))
        };
        match () {
            () if is("deepseek.com") => Some(Self::DeepSeek),
            () if is("openrouter.ai") => Some(Self::OpenRouter),
            () if is("siliconflow.cn") || is("siliconflow.com") => Some(Self::SiliconFlow),
            () => None,
        }
    }

    /// By its name in the configuration.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "deepseek" => Some(Self::DeepSeek),
            "openrouter" => Some(Self::OpenRouter),
            "siliconflow" => Some(Self::SiliconFlow),
            "billing" => Some(Self::Billing),
            "quota" => Some(Self::Quota),
            _ => None,
        }
    }

    /// What is asked for, below the host.
    pub const fn paths(self) -> &'static [&'static str] {
        match self {
            Self::DeepSeek => &["/user/balance"],
            Self::OpenRouter => &["/api/v1/key"],
            Self::SiliconFlow => &["/v1/user/info"],
            Self::Billing => &[
                "/v1/dashboard/billing/subscription",
                "/v1/dashboard/billing/usage",
            ],
            Self::Quota => &["/api/usage/token"],
        }
    }

    /// Reads the answers, in the order of [`Self::paths`]. `None` where there is no limit, or nothing that can be read.
    pub fn read(self, answers: &[Value]) -> Option<Balance> {
        let first = answers.first()?;
        let data = &first["data"];
        let dollars = |micros| Balance {
            micros,
            currency: Currency::USD,
        };
        match self {
            Self::DeepSeek => deepseek(first),
            Self::OpenRouter => micros(&data["limit_remaining"]).map(dollars),
            Self::SiliconFlow => Some(Balance {
                micros: micros(&data["totalBalance"])?,
                currency: Currency::CNY,
            }),
            Self::Billing => {
                let granted = micros(&first["hard_limit_usd"])?;
                if granted >= UNLIMITED * 1_000_000 {
                    return None;
                }
                // In cents.
                let used = micros(&answers.get(1)?["total_usage"])? / 100;
                Some(dollars(granted.checked_sub(used)?))
            }
            Self::Quota => {
                if data["unlimited_quota"].as_bool()? {
                    return None;
                }
                let left = i128::from(data["total_available"].as_i64()?);
                let left = left * 1_000_000 / i128::from(QUOTA_A_DOLLAR);
                Some(dollars(i64::try_from(left).ok()?))
            }
        }
    }
}

/// The sum of one currency; with several, the first that is not used up.
fn deepseek(answer: &Value) -> Option<Balance> {
    let rows = answer["balance_infos"].as_array()?.iter().take(16);
    let mut rows: Vec<Balance> = rows
        .filter_map(|row| {
            Some(Balance {
                micros: micros(&row["total_balance"])?,
                currency: Currency::of(row["currency"].as_str()?)?,
            })
        })
        .collect();
    rows.sort_by_key(|row| std::cmp::Reverse(row.micros));
    let mut balance = *rows.first()?;
    if answer["is_available"].as_bool() == Some(false) {
        balance.micros = balance.micros.min(0);
    }
    Some(balance)
}

/// A decimal number, as a number or as text, in millionths; more digits are cut off.
fn micros(value: &Value) -> Option<i64> {
    match value {
        Value::String(text) => decimal(text.trim()),
        Value::Number(number) => decimal(&number.to_string()),
        _ => None,
    }
}

fn decimal(text: &str) -> Option<i64> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, text),
    };
    let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
    let all_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !all_digits(whole) || !all_digits(part) {
        return None;
    }
    let part: i64 = format!("{:0<6}", &part[..part.len().min(6)]).parse().ok()?;
    let whole: i64 = whole.parse().ok()?;
    whole
        .checked_mul(1_000_000)?
        .checked_add(part)
        .map(|sum| sum * sign)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(teller: Teller, answers: &[&str], expected: Option<(i64, &str)>) {
        let answers: Vec<Value> = answers
            .iter()
            .map(|text| serde_json::from_str(text).unwrap())
            .collect();
        let read = teller.read(&answers);
        let read = read.map(|balance| (balance.micros, balance.currency.to_string()));
        let read = read.as_ref().map(|(micros, name)| (*micros, name.as_str()));
        assert_eq!(read, expected, "{teller:?} {answers:?}");
    }

    #[test]
    fn each_providers_answer_is_read() {
        use Teller::*;
        let deepseek = r#"{"is_available":true,"balance_infos":[{"currency":"CNY","total_balance":"110.00",
            "granted_balance":"10.00","topped_up_balance":"100.00"}]}"#;
        check(DeepSeek, &[deepseek], Some((110_000_000, "CNY")));
        let both = r#"{"is_available":true,"balance_infos":[{"currency":"CNY","total_balance":"0.00"},
            {"currency":"USD","total_balance":"3.5"}]}"#;
        check(DeepSeek, &[both], Some((3_500_000, "USD")));
        let debt =
            r#"{"is_available":false,"balance_infos":[{"currency":"USD","total_balance":"0.01"}]}"#;
        check(DeepSeek, &[debt], Some((0, "USD")));
        let router = r#"{"data":{"label":"sk-or-v1-0e6...1c9","usage":25.5,"limit":100,"limit_remaining":74.5,"is_free_tier":false}}"#;
        check(OpenRouter, &[router], Some((74_500_000, "USD")));
        let unlimited =
            r#"{"data":{"label":"x","usage":25.5,"limit":null,"limit_remaining":null}}"#;
        check(OpenRouter, &[unlimited], None);
        let silicon = r#"{"code":20000,"message":"OK","status":true,"data":{"id":"u","balance":"0.88","status":"normal",
            "chargeBalance":"88.00","totalBalance":"88.88"}}"#;
        check(SiliconFlow, &[silicon], Some((88_880_000, "CNY")));
        let plan = r#"{"object":"billing_subscription","has_payment_method":true,"soft_limit_usd":20,"hard_limit_usd":20.5,
            "system_hard_limit_usd":20.5,"access_until":0}"#;
        let used = r#"{"object":"list","total_usage":1234.5}"#;
        check(Billing, &[plan, used], Some((8_155_000, "USD")));
        let free = r#"{"hard_limit_usd":100000000}"#;
        check(Billing, &[free, used], None);
        let quota = r#"{"code":true,"message":"ok","data":{"object":"token_usage","total_granted":1000000,"total_used":250000,
            "total_available":750000,"unlimited_quota":false}}"#;
        check(Quota, &[quota], Some((1_500_000, "USD")));
    }

    #[test]
    fn nonsense_is_no_balance() {
        use Teller::*;
        for teller in [DeepSeek, OpenRouter, SiliconFlow, Billing, Quota] {
            for text in [
                "null",
                "[]",
                r#"{"error":{"message":"no"}}"#,
                r#"{"data":{"limit_remaining":"1e9","totalBalance":".5","unlimited_quota":false,"total_available":"7"},
                    "hard_limit_usd":true,"balance_infos":[{"currency":"dollars","total_balance":"1"}]}"#,
            ] {
                check(teller, &[text, text], None);
            }
        }
        for (text, expected) in [
            ("-0.5", Some(-500_000)),
            ("1.23456789", Some(1_234_567)),
            ("99999999999999999999", None),
            ("", None),
            ("1.-5", None),
        ] {
            assert_eq!(decimal(text), expected, "{text}");
        }
    }

    #[test]
    fn hosts_are_known_whole() {
        assert_eq!(Teller::of_host("api.deepseek.com"), Some(Teller::DeepSeek));
        assert_eq!(Teller::of_host("openrouter.ai"), Some(Teller::OpenRouter));
        assert_eq!(
            Teller::of_host("api.siliconflow.cn"),
            Some(Teller::SiliconFlow)
        );
        assert_eq!(Teller::of_host("notdeepseek.com"), None);
    }
}
