//! A large body travels to its egress while it still comes in, and arrives as it is.

use harness::{
    Connection, Echo, INGRESS, Network,
    echo::CALL,
    wait::{wait_for, wait_some},
};
use serde_json::json;

#[test]
fn a_prompt_whose_model_is_named_last_goes_ahead_and_reaches_the_provider_once() {
    let network = Network::shared();
    let echo = Echo::start();
    network.apply(&format!(
        "[[provider]]\nname = \"ahead\"\nkind = \"openai\"\nbase_url = \"http://{}/v1\"\nallow_private = true\n\
         [[credential]]\nname = \"ahead-1\"\nprovider = \"ahead\"\nsecret = \"sk-ahead\"\n\
         [[model]]\nname = \"ahead\"\nupstreams = [{{ provider = \"ahead\" }}]\n[[account]]\nname = \"ahead\"\n",
        echo.address
    ));
    let key = network.create_key("ahead", &[]).text;
    let (ingress, admin) = (network.address(INGRESS[0]), network.admin(INGRESS[0]));
    let counted = |which: &str| network.counted(admin, &format!("vector_exchange_ahead{which}"));
    let prompt: String = (0..300 << 10)
        .map(|at: u32| char::from(b'a' + (at % 23) as u8))
        .collect();
    let messages = json!([{"role": "user", "content": prompt}]);
    let body = format!(r#"{{"messages":{messages},"model":"ahead"}}"#);
    // The first one tells where to, and others use this network at the same time.
    let mut turn = 0;
    wait_some("a body that went ahead", || {
        turn += 1;
        let call = format!("ahead-{turn}");
        let (opened, begun) = (counted("_total"), counted("_begun_total"));
        let mut connection = Connection::open(ingress);
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n{CALL}: {call}\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let (first, second) = body.split_at(body.len() / 2);
        connection.write(&[head.as_bytes(), first.as_bytes()].concat());
        if turn > 1 {
            wait_for("a body on its way", || counted("_total") > opened);
        }
        connection.write(second.as_bytes());
        let answer = connection.answer().unwrap().rest().expect(200);
        assert_eq!(answer.text(), Echo::answer(&call));
        assert_eq!(answer.header("x-vector-attempts"), Some("1"));
        let arrived = echo.take(&call);
        assert!(arrived.len() == 1 && arrived[0].body == body.as_bytes());
        (counted("_begun_total") > begun).then_some(())
    });
}
