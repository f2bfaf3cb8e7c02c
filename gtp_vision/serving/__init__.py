"""From a run to the robot: the artifact that holds a policy, and what loads it and acts."""
