//! How clients and providers speak: pure reading of requests and answers.
