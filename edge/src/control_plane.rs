//! What control says, as the roles of this node need it: routes, keys, objects, usage.
