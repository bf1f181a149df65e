"""The words of the example task: what customers write, by split. No phrase, product or amount is in two splits.

A message is a *problem* (it decides the team), an *ask* (it decides whether money is to go back) and a *pressure*
(it decides the priority; a message without one is of normal priority).
"""

from dataclasses import dataclass

TEAMS = ("billing", "delivery", "technical", "account")
PRIORITIES = ("high", "normal", "low")


@dataclass(frozen=True)
class Phrases:
    products: tuple[str, ...]
    amounts: tuple[str, ...]
    problems: dict[str, tuple[str, ...]]
    """By team; ``{product}`` and ``{amount}`` are filled in."""
    refund: tuple[str, ...]
    other: tuple[str, ...]
    """Asks for anything but money."""
    high: tuple[str, ...]
    low: tuple[str, ...]


TRAIN = Phrases(
    products=(
        "Brisa Kettle", "Norvik Lamp", "Tallow Toaster", "Kestrel Drill", "Ombra Blender", "Pavo Router",
        "Solis Heater", "Quill Printer", "Harbor Grill", "Zephyr Fan", "Lumen Clock", "Marlow Mixer",
        "Arbor Thermostat", "Vesta Oven", "Pico Speaker", "Tundra Freezer", "Cobalt Shaver", "Rivet Saw",
        "Delta Monitor", "Fable Reader", "Onyx Phone", "Juno Vacuum", "Mosaic Tablet", "Falcon Drone",
        "Cirrus Humidifier", "Bramble Mower", "Atlas Treadmill", "Sable Camera", "Opal Scale", "Wren Headset",
        "Garnet Watch", "Timber Turntable", "Ripple Filter", "Comet Scooter", "Velvet Dishwasher", "Cinder Stove",
    ),
    amounts=("$19", "$24", "$35", "$48", "$59", "$72", "$86", "$99", "$120", "$135", "$150", "$240"),
    problems={
        "billing": (
            "I was charged {amount} twice for the {product}",
            "The invoice for my {product} shows {amount} too much",
            "My card was billed {amount} again for the {product}",
            "You took {amount} for a {product} I had already paid for",
            "The discount code for the {product} was not applied at payment",
            "My bank statement lists the {product} two times",
            "The price on my {product} bill is wrong by {amount}",
            "I paid {amount} for the {product} but got no receipt",
            "The tax on the {product} invoice is not correct",
            "There is an extra fee of {amount} on my {product} payment",
            "My monthly instalment for the {product} went up to {amount}",
            "The {product} was {amount} in the shop and the bill says more",
            "I still see a pending charge of {amount} for the {product}",
            "The voucher was ignored and the {product} cost me {amount}",
            "You sent me two invoices for one {product}",
            "The receipt of the {product} has the wrong company name on it",
        ),
        "delivery": (
            "My {product} has not arrived and it left the warehouse last week",
            "The courier left the {product} at the wrong house",
            "Tracking for the {product} has not moved for six days",
            "The box of the {product} was crushed when it came",
            "The parcel with the {product} says delivered, but nobody rang",
            "I ordered the {product} and received a different package",
            "The driver never came with my {product}",
            "The {product} is stuck at the depot",
            "My {product} was shipped to my old address",
            "The {product} should have been here on Monday",
            "Only half of the {product} order was in the parcel",
            "The carrier lost the package with the {product}",
            "The {product} was left in the rain by the postman",
            "There is no tracking number for my {product} yet",
            "The delivery date of the {product} was moved for the third time",
            "My neighbour got the {product} that was sent to me",
        ),
        "technical": (
            "The {product} will not turn on any more",
            "My {product} makes a loud noise and then stops",
            "The {product} shows error 42 after the update",
            "The button on the {product} does nothing when I press it",
            "My {product} loses its connection every few minutes",
            "The screen of the {product} stays black",
            "The {product} gets very hot after ten minutes",
            "I cannot pair the {product} with my phone",
            "The battery of the {product} is empty within an hour",
            "The motor of my {product} smells burnt",
            "The {product} restarts by itself all the time",
            "The settings of the {product} are gone after each restart",
            "The {product} freezes when I open the menu",
            "Smoke comes out of the back of the {product}",
            "The firmware of the {product} fails to install",
            "A red light blinks on my {product} and it does not start",
        ),
        "account": (
            "I forgot my password and cannot register the {product}",
            "Please change the email address on my {product} profile",
            "I cannot log in to see my {product} order",
            "My account was locked after I added the {product}",
            "The login code for the {product} app never reaches me",
            "I want to delete my profile and the {product} with it",
            "Two users share one login for the {product}",
            "The password reset link for the {product} has expired",
            "I have a new phone number, my {product} account has the old one",
            "Somebody else signed in to my {product} account",
            "My user name in the {product} app is misspelled",
            "I have two accounts with one {product} each and want to merge them",
            "The sign-in page of the {product} says unknown user",
            "Please move the {product} from my profile to my wife's profile",
            "I want to unsubscribe my email from the {product} news",
            "My {product} membership is under my maiden name",
        ),
    },
    refund=(
        "I want my money back.",
        "Please refund me.",
        "Please send the money back to my card.",
        "I would like a full refund.",
        "I ask for a refund.",
        "Refund the purchase, please.",
        "Give me back what I paid.",
        "Please return my payment.",
        "I expect the money back on my account.",
        "A refund is all I want.",
        "Can I get a refund?",
        "Just pay me back, please.",
    ),
    other=(
        "Please look into it.",
        "Can you check this?",
        "Please tell me what to do.",
        "Could you fix this for me?",
        "What are my options?",
        "Can someone help me?",
        "Please correct it.",
        "How do I solve this?",
        "Please let me know what happens next.",
        "I hope you can sort it out.",
        "Can you explain this to me?",
        "Please take care of it.",
    ),
    high=(
        "This is urgent.",
        "I need an answer today.",
        "It can't wait.",
        "Please hurry, I need it tomorrow.",
        "I need this solved right now.",
        "Please act immediately.",
        "My business stands still until then.",
        "I leave tonight, so be quick.",
        "This is an emergency.",
        "It must be done within an hour.",
        "As soon as possible, please.",
        "We need it this morning.",
        "Every minute counts.",
        "Answer at once, please.",
    ),
    low=(
        "There is no hurry.",
        "Take your time.",
        "Whenever you have a moment.",
        "It is not urgent.",
        "Any time this month is fine.",
        "No need to rush.",
        "I can wait.",
        "It is only a small thing.",
        "Next week is early enough.",
        "This has low priority for me.",
        "Answer when it suits you.",
        "It is not important.",
    ),
)

VALID = Phrases(
    products=(
        "Halden Iron", "Saffron Cooker", "Glacier Fridge", "Poppy Radio", "Tern Recorder", "Basalt Amplifier",
        "Mimosa Fryer", "Corvus Keyboard", "Linden Sprinkler", "Echo Doorbell",
    ),
    amounts=("$17", "$29", "$44", "$66", "$105", "$180"),
    problems={
        "billing": (
            "I see a double charge of {amount} for the {product}",
            "The total on the {product} invoice does not match the price",
            "{amount} was debited for a {product} that I cancelled",
            "My coupon for the {product} did not count when I paid",
        ),
        "delivery": (
            "The {product} was due on Friday and the parcel is still missing",
            "The courier says my {product} was handed to somebody else",
            "The package with the {product} arrived open and empty",
            "My {product} is on the way to the wrong city",
        ),
        "technical": (
            "The {product} switches itself off after a minute",
            "My {product} does not react to any button",
            "Since the last update the {product} crashes",
            "The {product} rattles badly when it runs",
        ),
        "account": (
            "I can't sign in because my {product} password is rejected",
            "Please close my {product} account",
            "My {product} profile still has my old email",
            "The app for the {product} says that my account is blocked",
        ),
    },
    refund=("Please give me my money back.", "I would like to be refunded.", "Please pay the amount back to me."),
    other=("Please have a look.", "Can you help?", "What should I do now?", "Please put this right."),
    high=("I need help immediately.", "It is very urgent.", "It has to be solved today.", "Please be fast."),
    low=("There is no rush at all.", "It can wait.", "Do it when you have time."),
)

HELD_OUT = Phrases(
    products=(
        "Meridian Shredder", "Lark Synthesizer", "Gannet Inverter", "Thistle Trimmer", "Argon Projector",
        "Nectar Juicer", "Bison Tracker", "Cascade Purifier", "Prism Scanner", "Hazel Lantern", "Orchid Dryer",
        "Summit Altimeter", "Ivory Steamer", "Pelican Cooler", "Ferro Compressor", "Dune Barometer", "Tulip Grinder",
        "Raven Microphone", "Boreal Charger", "Magnolia Smoker",
    ),
    amounts=("$15", "$27", "$33", "$52", "$68", "$75", "$110", "$195"),
    problems={
        "billing": (
            "My credit card shows {amount} for the {product} on two days",
            "I was overcharged {amount} when I bought the {product}",
            "The bill for the {product} lists an item I never bought",
            "You billed {amount} for the {product}, we agreed on less",
            "A second payment of {amount} for the {product} went off my bank account",
            "The invoice of the {product} is missing our tax number",
            "My bank was asked for {amount} more than the price of the {product}",
            "The payment of {amount} for the {product} was taken too early",
        ),
        "delivery": (
            "I am still waiting for the {product} you shipped ten days ago",
            "The parcel service cannot find the package with my {product}",
            "My {product} was dropped off in the wrong street",
            "The carton was torn and the {product} inside was gone",
            "The tracking page says that the {product} went back to the warehouse",
            "The delivery van drove past and took my {product} away again",
            "The package holding my {product} never reached our office",
            "Your carrier delivered somebody else's order in place of the {product}",
        ),
        "technical": (
            "The {product} stopped working after two days",
            "My {product} does not start, it only beeps",
            "The display of the {product} flickers and goes dark",
            "The {product} keeps crashing with a strange error message",
            "I hear a grinding sound when the {product} runs",
            "The {product} no longer charges and is dead by noon",
            "The {product} overheats and shuts down in the middle of the work",
            "The touch panel of my {product} is not responding",
        ),
        "account": (
            "I am unable to log on to my {product} profile",
            "My password for the {product} portal no longer works",
            "I have a new email and want it on my {product} account",
            "Please remove my user account for the {product}",
            "A stranger has logged in under my name on the {product} site",
            "The verification code for my {product} login does not come",
            "My sister's name is on my {product} account, please put mine there",
            "I get the message wrong password each time I open my {product} page",
        ),
    },
    refund=(
        "I'd like to get my money back.",
        "Kindly refund the full amount.",
        "Please transfer the money back to me.",
        "I insist on a refund.",
        "Will you pay me back?",
    ),
    other=(
        "Please see what you can do.",
        "Could you assist me?",
        "Kindly check what went wrong.",
        "Please advise.",
        "How can we settle this?",
    ),
    high=(
        "I need this urgently.",
        "Please reply immediately, it is critical.",
        "It needs to be done today.",
        "Please be quick, we open tomorrow.",
        "I need a solution now.",
    ),
    low=(
        "No hurry with this.",
        "You can take your time with it.",
        "It is not urgent at all, I can wait.",
        "There is no need to hurry.",
        "Some time next month is fine.",
    ),
)

SPLITS = {"train": TRAIN, "valid": VALID, "held_out": HELD_OUT}
